"""Shows jobs and results to people: `progress` shows jobs, `circuits` circuits and edge scores."""
