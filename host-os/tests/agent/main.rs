//! The agent as a process, with a simulated QEMU. Boots of real guests are in the workspace's `tests`.
#![cfg(feature = "virtual")]

#[cfg(test)]
mod made_up;
mod refusals;
mod restarts;
#[cfg(test)]
mod world;
