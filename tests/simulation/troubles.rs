//! Troubles of the network, of disks, of files of the cache, and of processes.

use super::*;

impl World {
    pub(super) fn an_illness(&mut self) -> Ill {
        let percent = 1 + self.random.below(60);
        self.random.pick(&[Ill::Full, Ill::ReadOnly, Ill::Fails(percent)])
    }

    /// One thing that happens to the world.
    pub(super) async fn disturb(&mut self, at: usize) {
        let process = self.processes[at].as_mut().unwrap();
        match self.random.below(14) {
            0 => {
                self.counts.kills += 1;
                self.end(at, Ending::Kill).await;
            }
            1 => self.end(at, Ending::Unmount).await,
            2 | 3 => {
                self.counts.evictions += 1;
                let layer = self.random.pick(&self.layers);
                let dropped = evict_content(&process.store, &layer);
                trace!(self, "{at} drops {layer}: {dropped:?}");
            }
            4 => {
                self.counts.evictions += 1;
                let keep = [Keep::Known, Keep::Indexes, Keep::Bytes(100_000), Keep::Nothing];
                let pruned = process.store.prune(self.random.pick(&keep));
                trace!(self, "{at} prunes: {pruned:?}");
                drop(process.store.make_room(50_000));
            }
            5 | 6 => self.trouble().await,
            7 => self.rot(),
            8 => self.lose_power().await,
            9 => {
                let seconds = self.random.below(100_000) as u64;
                self.pass(Duration::from_secs(seconds)).await;
            }
            10 => {
                let policy = self.random.pick(&[Prefetch::None, Prefetch::Profile, Prefetch::All]);
                let fs = Arc::clone(&process.mount.fs);
                trace!(self, "{at} prefetches: {policy:?}");
                // As long as others let it.
                self.within(Duration::from_secs(1), fs.prefetch(policy)).await;
            }
            11 | 12 => self.turn_to_other(at),
            _ => {
                self.counts.bad_disks += 1;
                let well = self.random.chance(40);
                let ill = if well { Ill::Well } else { self.an_illness() };
                trace!(self, "the disk of {at} is {ill:?}");
                self.processes[at].as_ref().unwrap().disk.fall(ill);
            }
        }
    }

    async fn trouble(&mut self) {
        if self.random.chance(40) {
            return self.calm().await;
        }
        self.counts.outages += 1;
        let place = self.random.next() % (1 << 40);
        let trouble = self.random.pick(&[
            Trouble::Down,
            Trouble::Hangs,
            Trouble::Cuts(place),
            Trouble::Flips(place),
            Trouble::Misplaces(place),
            Trouble::Miscounts(place),
            Trouble::Refuses,
            Trouble::Slow,
        ]);
        let with = self.random.chance(40).then(|| self.random.pick(&self.layers));
        trace!(self, "the network: {trouble:?} {with:?}");
        if trouble.lies() {
            self.taint();
        }
        self.network.set_trouble(Some((trouble, with)));
    }

    /// Mounts that show what is not verified may show something wrong from now on.
    fn taint(&self) {
        let mounts = self.processes.iter().flatten().flat_map(|process| process.other.iter().chain([&process.mount]));
        for mount in mounts.filter(|mount| mount.verify == Verify::Behind) {
            mount.tainted.store(true, Ordering::Relaxed);
        }
    }

    /// All processes end at once, and the disk has not got all that it was given.
    async fn lose_power(&mut self) {
        self.counts.power_cuts += 1;
        for process in self.processes.iter().flatten() {
            process.disk.fall(Ill::Gone);
        }
        for at in 0..self.processes.len() {
            self.end(at, Ending::Kill).await;
        }
        let loss = self.random.pick(&Loss::ALL);
        trace!(self, "the power is lost: {loss:?}");
        for disk in std::mem::take(&mut self.past) {
            disk.lose(loss, &self.cache());
        }
    }

    /// One file of the cache changes.
    fn rot(&mut self) {
        self.counts.rotten += 1;
        let mut files = Vec::new();
        let mut pending = vec![self.cache()];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() {
            return;
        }
        let path = self.random.pick(&files);
        let how = disk::rot(&path, &mut self.random);
        trace!(self, "`{}` is {how}", path.strip_prefix(self.cache()).unwrap().display());
        let name = path.to_string_lossy();
        for process in self.processes.iter_mut().flatten() {
            process.rotten += u32::from(name.contains("index-v"));
        }
        // What is shown while it is read in comes from there.
        if name.contains("/tmp/") {
            self.taint();
        }
    }
}
