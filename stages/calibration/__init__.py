"""What a pair of models does on this machine, measured once: how often it agrees and what a step costs."""
