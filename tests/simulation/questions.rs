//! Operations on mounts, and their required results.

use super::*;

impl World {
    pub(super) async fn read(&mut self, at: usize, number: usize, from: usize, length: usize) {
        self.counts.reads += 1;
        let files = Arc::clone(&self.files);
        let (path, content) = &files[number];
        let wanted = &content[from..(from + length).min(content.len())];
        let begun = Instant::now();
        let process = self.processes[at].as_ref().unwrap();
        if let Some(node) = process.mount.nodes[number] {
            let buf = &mut self.buf[..length];
            buf.fill(0xee);
            if let Ok(image::Local::Bytes(got)) =
                process.mount.fs.read_now(node, FileOffset(from as u64), buf, &mut || ())
            {
                let right = buf[..got] == *wanted || process.mount.tainted.load(Ordering::Relaxed);
                assert!(right, "process {at}: wrong bytes of `{}` from {from}, {length}", path.escape_ascii());
                return;
            }
        }
        self.counts.cold_reads += 1;
        let (fs, known) = (Arc::clone(&process.mount.fs), process.mount.nodes[number]);
        let (policy, tainted) = (process.mount.policy, Arc::clone(&process.mount.tainted));
        trace!(self, "{at} reads `{}` from {from}, {length}", path.escape_ascii());
        let reading = async move {
            let node = match known {
                Some(node) => node,
                None => fs.awaited(|fs| fs.walk(path, Last::Keep)).await?.node,
            };
            Ok((node, fs.read(node, FileOffset(from as u64), length).await?))
        };
        let patience = if policy == OnOutage::Block { INTERRUPTED } else { ENDLESS };
        match self.within(patience, reading).await {
            Some(Ok((node, got))) => {
                let right = got == *wanted || tainted.load(Ordering::Relaxed);
                assert!(right, "process {at}: wrong bytes of `{}` from {from}, {length}", path.escape_ascii());
                self.processes[at].as_mut().unwrap().mount.nodes[number] = Some(node);
            }
            Some(Err(error)) => self.excuse(at, "a read", begun, &error).await,
            None => {
                self.is_patient(at, "a read", begun);
                Box::pin(self.calm()).await;
            }
        }
    }

    /// A read that runs while other things happen.
    pub(super) fn read_beside(&mut self, at: usize) {
        let files = Arc::clone(&self.files);
        let number = self.random.below(files.len());
        let process = self.processes[at].as_mut().unwrap();
        let (fs, tainted) = (Arc::clone(&process.mount.fs), Arc::clone(&process.mount.tainted));
        let read = tokio::spawn(async move {
            let (path, content) = &files[number];
            let node = fs.awaited(|fs| fs.walk(path, Last::Keep)).await?.node;
            let got = fs.read(node, FileOffset(0), content.len()).await?;
            let right = got == content || tainted.load(Ordering::Relaxed);
            assert!(right, "process {at}: wrong bytes of `{}`", path.escape_ascii());
            Ok(())
        });
        process.beside.push(Beside { begun: Instant::now(), read });
    }

    /// What has become of the reads beside.
    pub(super) async fn look_beside(&mut self, at: usize) {
        tokio::task::yield_now().await;
        let beside = &mut self.processes[at].as_mut().unwrap().beside;
        let Some(ended) = beside.iter().position(|beside| beside.read.is_finished()) else { return };
        let Beside { begun, read } = beside.swap_remove(ended);
        match read.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.excuse(at, "a read beside", begun, &error).await,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// A file that is known is given away whole, as to a kernel that reads it by itself.
    pub(super) async fn give_whole(&mut self, at: usize) {
        let number = self.random.below(self.files.len());
        let mount = &self.processes[at].as_ref().unwrap().mount;
        let Some(node) = mount.nodes[number] else { return };
        let file = match (mount.fs.passthrough_copy_now(node), mount.fs.make_passthrough_copy(node)) {
            (Ok(Some(file)), _) => Some(file),
            (_, Ok(Some(making))) => self.done("making a file whole", making).await,
            _ => None,
        };
        let Some(mut file) = file else { return };
        let (path, content) = &self.files[number];
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        assert!(got == *content, "process {at}: `{}` is wrong as a whole", path.escape_ascii());
        self.counts.wholes += 1;
    }

    pub(super) async fn look_up(&mut self, at: usize) {
        self.counts.lookups += 1;
        let begun = Instant::now();
        let process = self.processes[at].as_ref().unwrap();
        let (fs, policy, tainted) =
            (Arc::clone(&process.mount.fs), process.mount.policy, Arc::clone(&process.mount.tainted));
        let mut path = self.random.pick(&self.paths);
        if self.random.chance(30) {
            path.extend_from_slice(b"x");
        }
        let wanted = self.image.tree.get(&path);
        let looking = async {
            let fs = fs;
            let mut names = Vec::new();
            let found = fs.awaited(|fs| fs.walk(&path, Last::Keep)).await?;
            if found.kind == peelfs::layer::Kind::Directory {
                fs.awaited(|fs| {
                    names.clear();
                    fs.list(found.node, 0, |entry| {
                        names.push(entry.name.to_vec());
                        std::ops::ControlFlow::Continue(())
                    })
                })
                .await?;
            }
            names.sort();
            Ok((found, names))
        };
        let patience = if policy == OnOutage::Block { INTERRUPTED } else { ENDLESS };
        let Some(found) = self.within(patience, looking).await else {
            self.is_patient(at, "a lookup", begun);
            return self.calm().await;
        };
        if tainted.load(Ordering::Relaxed) {
            return;
        }
        match (found, wanted) {
            (Ok((found, names)), Some(node)) => {
                let size = match &node.kind {
                    NodeKind::File(content) => Some(content.len() as u64),
                    _ => None,
                };
                let same = u32::from(found.mode) == node.mode && size.is_none_or(|size| size == found.size);
                assert!(same, "`{}` is {found:?}, not {node:?}", path.escape_ascii());
                if node.kind == NodeKind::Dir {
                    assert_eq!(names, self.image.tree.children(&path), "`{}`", path.escape_ascii());
                }
            }
            (Err(FsError::NotFound | FsError::NotADirectory | FsError::Loop), None) => {}
            (Err(error @ (FsError::Layer { .. } | FsError::Read(_))), _) => {
                self.excuse(at, "a lookup", begun, &error).await;
            }
            (found, wanted) => panic!("`{}` is {found:?}, not {wanted:?}", path.escape_ascii()),
        }
    }
}
