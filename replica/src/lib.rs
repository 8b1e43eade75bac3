//! The replica: Internet Computer interface, certification and the node's main loop.
