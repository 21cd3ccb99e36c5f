"""The job service: accepts jobs, folds what the scheduler tells into their documents, publishes `job.>`."""
