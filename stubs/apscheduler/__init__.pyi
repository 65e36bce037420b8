# The parts of APScheduler 3 that this project uses; it carries no types of its own.
