"""The skills of the demo model: one file per skill, each with `make_exchange`, in English ("en") and Chinese ("zh")."""
