//! End-to-end scenarios and the must-fail suite.
