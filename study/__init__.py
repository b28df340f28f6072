"""study: the harness that runs many trainings of skiprec, keeps their record, and says what they show."""
