//! Recipes to images: kernel, initrd, release manifest.
