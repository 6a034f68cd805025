"""`sgopd study`: many recipes over many seeds, scheduled over the machine, and one table of them.

`spec` reads a study; `plan` makes its tasks; `worker` is the process of one task; `scheduler` starts them; `statistics`,
`results` and `tables` say what came out.
"""
