"""The views that the notebooks for looking show, each the last line of a cell.

| module         | holds                                                                                  |
| -------------- | -------------------------------------------------------------------------------------- |
| `base.py`      | what all views share: state in traits, live widgets, and a still picture               |
| `expert.py`    | an expert's game: Q-values over time, frames, histograms, and a student that watches   |
| `round.py`     | what the next two share: a run, a round of it, and which of its states                 |
| `selection.py` | the frames that a round chose, sorted and filtered, alone or side by side; their GIFs  |
| `scatter.py`   | a round's states as points, entropy against BALD, linked with their frames             |
"""
