"""How fast the programs that users run are, beside what the machine allows and beside others."""
