"""From examples to an adapter. Importing this is cheap: torch and PEFT load with the modules that train."""
