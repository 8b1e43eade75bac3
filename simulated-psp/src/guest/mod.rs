//! Guest side: client of the port, and a file system that looks like configfs-tsm.
