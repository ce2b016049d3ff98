"""What clients notice while workers are killed, restarted, refuse or lie about their load: nothing, or the run has failed."""
