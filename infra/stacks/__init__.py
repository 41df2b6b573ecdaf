"""The two stacks: what must survive (`data`) and what can be made anew (`service`)."""
