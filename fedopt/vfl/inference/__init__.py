"""What can be learnt from the messages of vertical training: guesses of labels and of features, and how good they are.

The functions take messages that were recorded and nothing else of a run. Against labels, by a party that reads what it
is told: `sign`, `completion`. Against features, by the label owner that reads what it is sent: `auxiliary`, `binary`.
`success` compares guesses with the truth and with a guess by somebody who has read nothing.
"""

from __future__ import annotations
