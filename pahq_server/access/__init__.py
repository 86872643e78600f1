"""Who may call what, and how much: tokens, certificates, the policy of every call, rates and permits."""
