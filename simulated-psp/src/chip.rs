//! Host side of the simulated PSP.
