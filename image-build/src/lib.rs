//! Recipes to images: kernel, firmware, initrd, release manifest; built so that anybody can rebuild them bit for bit.
//!
//! Data stands beside the code: `recipes/` says what an image is made of, `kernel/` holds option lists, `firmware/` our
//! patches, `inputs.toml` what is asked of the distribution and `inputs.lock` what it answered, by content.
//!
//! [`fetch`] brings the locked [`inputs`] into the content-addressed [`store`]; [`root`] unpacks the build root out of
//! them; compilers run in it inside a [`sandbox`]. Expensive outputs go to a [`cache`] by the hash of their inputs.

pub mod apt;
pub mod cache;
pub mod compare;
pub mod cpio;
pub mod deb;
pub mod error;
pub mod explain;
pub mod fetch;
pub mod files;
pub mod firmware;
pub mod guest;
pub mod host;
pub mod images;
pub mod inputs;
pub mod installer;
pub mod kernel;
pub mod lock;
pub mod programs;
pub mod published;
pub mod recipe;
pub mod reproduce;
pub mod root;
pub mod sandbox;
pub mod step;
pub mod store;
pub mod toolchain;
pub mod trust;
pub mod update;
pub mod vendor;
pub mod workshop;
