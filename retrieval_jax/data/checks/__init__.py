"""The validator: what is wrong with the pictures and the labels of a data set.

`inspection.inspect_collection` reads every picture once and returns findings;
the table `findings.KINDS` says what is looked for and how bad it is.
"""
