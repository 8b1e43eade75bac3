//! The file system: configfs-tsm's directories and files over FUSE.

use super::Client;
use super::tsm::{Attribute, INBLOB_MAX, Report, TsmError};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel may remember names and attributes: they never change while they exist, and it sees every removal.
/// Content is never cached (`FOPEN_DIRECT_IO`).
const TTL: Duration = Duration::from_secs(3600);
/// Most report directories at a time; the guest uses a few.
const MAX_REPORTS: usize = 64;
/// Inode numbers of one report: its directory, then its attributes in the order of [`Attribute::ALL`].
const INODES_PER_REPORT: u64 = 16;

/// The mounted file system; unmounts when dropped.
#[derive(Debug)]
pub struct Mounted(#[expect(dead_code, reason = "held for its Drop")] fuser::BackgroundSession);

/// Mounts over `directory` and serves from a thread of its own. Needs root and /dev/fuse; no helper program.
/// The client stays shared with those who ask for derived keys.
pub fn mount(directory: &Path, client: Arc<Mutex<Client<File>>>) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("simulated-psp".into()), MountOption::NoExec, MountOption::NoAtime];
    let reports = Reports { client, state: Mutex::new(State::default()) };
    Ok(Mounted(Session::new(reports, directory, &config)?.spawn()?))
}

#[derive(Debug)]
struct Reports {
    client: Arc<Mutex<Client<File>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By number; numbers are not given out again, so an inode number never comes to mean another file.
    reports: BTreeMap<u64, (String, Report)>,
    /// By file handle.
    open: BTreeMap<u64, Open>,
    last_report: u64,
    last_handle: u64,
}

#[derive(Debug)]
struct Open {
    report: u64,
    attribute: Attribute,
    /// Content, fetched at the first read(2) as configfs does, so that one open file never mixes two reports.
    read: Option<Vec<u8>>,
    /// Content of a binary attribute until close(2).
    written: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Root,
    Report(u64),
    Attribute(u64, Attribute),
}

impl Node {
    fn of(inode: INodeNo) -> Option<Self> {
        if inode == INodeNo::ROOT {
            return Some(Self::Root);
        }
        let (report, index) = (inode.0 / INODES_PER_REPORT, inode.0 % INODES_PER_REPORT);
        match index.checked_sub(1) {
            None => Some(Self::Report(report)),
            Some(index) => Some(Self::Attribute(report, *Attribute::ALL.get(index as usize)?)),
        }
    }

    fn inode(self) -> INodeNo {
        match self {
            Self::Root => INodeNo::ROOT,
            Self::Report(report) => INodeNo(report * INODES_PER_REPORT),
            Self::Attribute(report, attribute) => INodeNo(report * INODES_PER_REPORT + 1 + attribute as u64),
        }
    }

    fn stat(self) -> FileAttr {
        let (kind, perm, size) = match self {
            Self::Root | Self::Report(_) => (FileType::Directory, 0o755, 0),
            Self::Attribute(_, attribute) => (
                FileType::RegularFile,
                if attribute.writable() { 0o200 } else { 0o444 },
                // As configfs: one page for text, nothing known for binary attributes.
                if attribute.binary() { 0 } else { 4096 },
            ),
        };
        FileAttr {
            ino: self.inode(),
            size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl From<TsmError> for Errno {
    fn from(error: TsmError) -> Self {
        match error {
            TsmError::Invalid => Self::EINVAL,
            TsmError::Busy => Self::EBUSY,
            TsmError::NoDevice => Self::ENXIO,
            TsmError::Access => Self::EACCES,
        }
    }
}

impl State {
    fn exists(&self, node: Node) -> bool {
        match node {
            Node::Root => true,
            Node::Report(report) | Node::Attribute(report, _) => self.reports.contains_key(&report),
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Option<Node> {
        let name = name.to_str()?;
        match Node::of(parent)? {
            Node::Root => {
                let (&number, _) = self.reports.iter().find(|(_, (existing, _))| existing == name)?;
                Some(Node::Report(number))
            }
            Node::Report(report) if self.reports.contains_key(&report) => {
                let attribute = Attribute::ALL.into_iter().find(|attribute| attribute.name() == name)?;
                Some(Node::Attribute(report, attribute))
            }
            _ => None,
        }
    }

    /// Stores what was written to a binary attribute; done once for an open file.
    fn store(&mut self, handle: FileHandle) -> Result<(), Errno> {
        let open = self.open.get_mut(&handle.0).ok_or(Errno::EBADF)?;
        let Some(value) = open.written.take() else { return Ok(()) };
        let (_, report) = self.reports.get_mut(&open.report).ok_or(Errno::ENOENT)?;
        Ok(report.write(open.attribute, &value)?)
    }

    fn write(&mut self, handle: FileHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let open = self.open.get_mut(&handle.0).ok_or(Errno::EBADF)?;
        if !open.attribute.binary() {
            let (_, report) = self.reports.get_mut(&open.report).ok_or(Errno::ENOENT)?;
            return Ok(report.write(open.attribute, data)?);
        }
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data.len()));
        let Some(end) = end.filter(|&end| end <= INBLOB_MAX) else { return Err(Errno::EFBIG) };
        let buffer = open.written.get_or_insert_default();
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        buffer[end - data.len()..end].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, handle: FileHandle, client: &Mutex<Client<File>>) -> Result<&[u8], Errno> {
        let open = self.open.get_mut(&handle.0).ok_or(Errno::EBADF)?;
        if open.read.is_none() {
            let (_, report) = self.reports.get_mut(&open.report).ok_or(Errno::ENOENT)?;
            open.read = Some(report.read(open.attribute, |data, vmpl| lock(client).report(data, vmpl))?);
        }
        Ok(open.read.as_deref().unwrap_or_default())
    }
}

/// A panic elsewhere while the lock was held leaves no half-made state here: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Filesystem for Reports {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match lock(&self.state).find(parent, name) {
            Some(node) => reply.entry(&TTL, &node.stat(), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match Node::of(inode).filter(|node| lock(&self.state).exists(*node)) {
            Some(node) => reply.attr(&TTL, &node.stat()),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Only O_TRUNC comes this way in practice; configfs ignores it.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.getattr(request, inode, handle, reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut state = lock(&self.state);
        let Some(text) = name.to_str() else { return reply.error(Errno::EINVAL) };
        if parent != INodeNo::ROOT {
            return reply.error(Errno::EPERM);
        }
        if state.find(parent, name).is_some() {
            return reply.error(Errno::EEXIST);
        }
        if state.reports.len() >= MAX_REPORTS {
            return reply.error(Errno::ENOMEM);
        }
        state.last_report += 1;
        let number = state.last_report;
        state.reports.insert(number, (text.to_owned(), Report::default()));
        reply.entry(&TTL, &Node::Report(number).stat(), Generation(0));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = lock(&self.state);
        match state.find(parent, name) {
            Some(Node::Report(number)) => {
                state.reports.remove(&number);
                reply.ok();
            }
            Some(_) => reply.error(Errno::ENOTDIR),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut state = lock(&self.state);
        let Some(Node::Attribute(report, attribute)) = Node::of(inode).filter(|node| state.exists(*node))
        else {
            return reply.error(Errno::ENOENT);
        };
        let wants_write = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => false,
            OpenAccMode::O_WRONLY => true,
            // No attribute has both directions.
            OpenAccMode::O_RDWR => return reply.error(Errno::EACCES),
        };
        if wants_write != attribute.writable() {
            return reply.error(Errno::EACCES);
        }
        state.last_handle += 1;
        let handle = state.last_handle;
        state.open.insert(handle, Open { report, attribute, read: None, written: None });
        // Closing a file that was read has nothing to say.
        let quiet = if wants_write { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO | quiet);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.state).read(handle, &self.client) {
            Ok(content) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let end = start.saturating_add(size as usize).min(content.len());
                reply.data(&content[start..end]);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.state).write(handle, offset, data) {
            // One FUSE request is far below 4 GiB.
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    /// FUSE's answer to close(2), which waits for it; `release` comes later and unseen.
    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        match lock(&self.state).store(handle) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.state).open.remove(&handle.0);
        reply.ok();
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = lock(&self.state);
        let Some(node) = Node::of(inode).filter(|node| state.exists(*node)) else {
            return reply.error(Errno::ENOENT);
        };
        let mut entries = vec![(node, "."), (Node::Root, "..")];
        match node {
            Node::Root => {
                entries.extend(state.reports.iter().map(|(n, (name, _))| (Node::Report(*n), name.as_str())));
            }
            Node::Report(report) => {
                entries.extend(Attribute::ALL.map(|a| (Node::Attribute(report, a), a.name())));
            }
            Node::Attribute(..) => return reply.error(Errno::ENOTDIR),
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (node, name)) in entries.into_iter().enumerate().skip(start) {
            if reply.add(node.inode(), index as u64 + 1, node.stat().kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_and_nodes_are_one_to_one() {
        let mut seen = std::collections::BTreeSet::new();
        for report in 1..4 {
            let directory = Node::Report(report);
            assert!(matches!(Node::of(directory.inode()), Some(Node::Report(n)) if n == report));
            assert!(seen.insert(directory.inode()));
            for attribute in Attribute::ALL {
                let node = Node::Attribute(report, attribute);
                assert!(
                    matches!(Node::of(node.inode()), Some(Node::Attribute(n, a)) if n == report && a == attribute)
                );
                assert!(seen.insert(node.inode()));
            }
        }
        assert!(!seen.contains(&INodeNo::ROOT));
        assert!(Node::of(INodeNo(INODES_PER_REPORT + 15)).is_none());
    }

    fn opened(attribute: Attribute) -> (State, FileHandle) {
        let mut state = State::default();
        state.reports.insert(1, ("x".into(), Report::default()));
        state.open.insert(5, Open { report: 1, attribute, read: None, written: None });
        (state, FileHandle(5))
    }

    #[test]
    fn a_binary_attribute_is_stored_once_at_close_whatever_the_writes() {
        let (mut state, handle) = opened(Attribute::Inblob);
        state.write(handle, 32, &[2; 32]).unwrap();
        state.write(handle, 0, &[1; 32]).unwrap();
        assert!(matches!(state.write(handle, 64, &[0]), Err(Errno::EFBIG)));
        assert!(matches!(state.write(handle, u64::MAX, &[0]), Err(Errno::EFBIG)));
        let generation = |state: &mut State| {
            let (_, report) = state.reports.get_mut(&1).unwrap();
            report.read(Attribute::Generation, |_, _| panic!("not needed")).unwrap()
        };
        assert_eq!(generation(&mut state), b"0\n");
        state.store(handle).unwrap();
        state.store(handle).unwrap();
        assert_eq!(generation(&mut state), b"1\n");
    }

    #[test]
    fn a_removed_report_is_gone_for_those_who_still_have_it_open() {
        let (mut state, handle) = opened(Attribute::Privlevel);
        state.write(handle, 0, b"1").unwrap();
        state.reports.clear();
        assert!(matches!(state.write(handle, 0, b"1"), Err(Errno::ENOENT)));
    }
}
