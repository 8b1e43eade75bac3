//! Recipes to images: kernel, initrd, release manifest.
//!
//! Data stands beside the code: `recipes/` says what an image is made of, `kernel/` holds the option lists,
//! `inputs.toml` pins what comes from outside. Expensive outputs go to a [`cache`] by the hash of their inputs.

pub mod cache;
pub mod cpio;
pub mod fetch;
pub mod guest;
pub mod kernel;
pub mod programs;
pub mod recipe;
pub mod step;
