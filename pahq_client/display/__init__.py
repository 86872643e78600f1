"""How jobs, circuits and scores look: `progress` for what runs, `circuits` for what was found."""
