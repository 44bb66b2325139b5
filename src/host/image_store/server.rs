//! The process that serves a store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::records::{Record, Records};
use super::{ImageStoreError, StoreSpec};
use crate::fuse::{self, MountOptions, Target};
use crate::host::channel::{AsyncChannel, ChannelError, Listener};
use crate::host::cover::{self, Need};
use crate::host::error::HostError;
use crate::host::process::Ends;
use crate::host::report::Report;
use crate::host::wire::v1::Word;
use crate::host::{Progress, ending, mount, mount_point, open, subids, wire};
use crate::image::{
    self, Eagerness, IndexChoice, LayerFs, Limits, OpaqueMark, Prefetch, SharedLayers, Tree, Trust, Verify,
};
use crate::image_store::{IdMap, Image, StoreTree, Stored, empty};
use crate::overlay::LayerNo;

/// A notification to the serving process; [`Word`]s are the answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Told {
    /// Records were changed.
    Changed {
        /// The image that was added.
        added: Option<String>,
        /// Whether to verify all of its layers before the answer.
        wait: bool,
    },
}

/// Serves the store until it is unmounted or a signal arrives.
///
/// # Errors
/// [`HostError`]
pub fn serve(spec: &StoreSpec, progress: &mut dyn Progress) -> Result<(), HostError> {
    if !spec.at.exists() {
        std::fs::create_dir_all(&spec.at).map_err(ImageStoreError::file(&spec.at))?;
    }
    let records = Records::open(&spec.at)?;
    let _serving = records.serve()?;
    let at = mount_point::find(&spec.at, progress)?;
    if empty::is_foreign(&at).map_err(ImageStoreError::file(&at))? {
        return Err(ImageStoreError::Foreign { at }.into());
    }
    empty::make(&at).map_err(ImageStoreError::file(&at))?;
    let target = Target::open(&at)?;
    cover::check(&target, &spec.at, &[Need::Cache(spec.cache.dir.clone())])?;
    mount::in_runtime(async {
        let mut ends = Ends::new()?;
        let store = Store::new(spec, records)?;
        store.look().await?;
        // Left by a process that was killed.
        let _ = std::fs::remove_file(store.records.socket());
        let listener = Listener::bind(&store.records.socket()).map_err(HostError::system("listen on a socket"))?;
        let options = MountOptions {
            source: "image store".to_owned(),
            allow_other: spec.allow_other,
            refuse_own_requests: true,
            ..MountOptions::default()
        };
        let mounted = fuse::mount(Arc::clone(&store.tree) as Arc<dyn Tree>, &target, &options)?;
        let place = mounted.place();
        ending::look_after(mounted.disconnect());
        let listening = tokio::spawn(listen(listener, Arc::clone(&store)));
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::debug!(%error, "no service manager is listening");
        }
        tracing::info!(at = %at.display(), "the store is served");
        let served = mounted.served();
        tokio::pin!(served);
        let ended = tokio::select! {
            ended = &mut served => ended,
            _ = ends.wait() => {
                mount::take_away(&place);
                tokio::select! {
                    ended = &mut served => ended,
                    _ = ends.wait() => {
                        ending::disconnect();
                        Ok(())
                    }
                }
            }
        };
        listening.abort();
        let _ = std::fs::remove_file(store.records.socket());
        ended.map_err(HostError::system("serve the store"))
    })
}

/// A store that is being served.
struct Store {
    spec: StoreSpec,
    records: Records,
    shared_layers: SharedLayers,
    tree: Arc<StoreTree>,
    /// Held while the shown images are changed.
    looking: tokio::sync::Mutex<()>,
}

impl Store {
    fn new(spec: &StoreSpec, records: Records) -> Result<Arc<Self>, HostError> {
        let shared_layers = open::shared_layers(&spec.cache)?;
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        let files = Arc::clone(shared_layers.store());
        let make_file = Arc::new(move || files.unnamed_file());
        let tree = StoreTree::new((user, group), id_maps(), make_file);
        let (spec, tree) = (spec.clone(), Arc::new(tree));
        Ok(Arc::new(Self { spec, records, shared_layers, tree, looking: tokio::sync::Mutex::default() }))
    }

    /// Shows the recorded images. An image that cannot be opened is skipped, with a warning.
    async fn look(self: &Arc<Self>) -> Result<BTreeMap<String, HostError>, HostError> {
        let _looking = self.looking.lock().await;
        let (mut images, mut failed) = (Vec::new(), BTreeMap::new());
        let mut opened = BTreeMap::new();
        for (hex, record) in self.records.all()? {
            match self.open(&record, &mut opened).await {
                Ok(image) => images.push(image),
                Err(error) => {
                    let name = record.names.first().map_or(&hex, |name| name);
                    tracing::warn!(error = image::chain(&error), name, "an image of the store cannot be shown");
                    failed.insert(hex, error);
                }
            }
        }
        self.tree.show(images);
        // The sizes follow once they are known.
        for fs in opened.into_values() {
            let tree = Arc::downgrade(&self.tree);
            tokio::spawn(async move {
                if fs.all_known().await.is_ok()
                    && let Some(tree) = tree.upgrade()
                {
                    tree.refresh();
                }
            });
        }
        Ok(failed)
    }

    /// Opens an image; reuses layers that are shown already, and adds new ones to `opened`.
    async fn open(&self, record: &Record, opened: &mut BTreeMap<String, Arc<LayerFs>>) -> Result<Image, HostError> {
        let wrong = |cause| HostError::Channel { peer: "records of the store", cause: ChannelError::Wire(cause) };
        let mut spec = record.image(self.spec.on_outage).map_err(wrong)?;
        spec.cache = self.spec.cache.clone();
        let image = open::open_again(&spec, &record.root, &record.documents, &self.shared_layers).await?;
        if image.plan.manifest.digest != record.manifest {
            return Err(HostError::OtherManifest { reference: image.reference });
        }
        let stored = Stored::new(&image.plan, record.names.clone(), &record.added).ok_or(ImageStoreError::Documents)?;
        if let Some(outages) = image.source.outages() {
            outages.outlast(self.spec.on_outage);
        }
        let mut layers = Vec::new();
        for (number, layer) in (0..).zip(&stored.layers) {
            if let Some(known) = self.tree.layer(&layer.id).or_else(|| opened.get(&layer.id).cloned()) {
                layers.push(known);
                continue;
            }
            let fs = image::open_layer(
                &image.plan,
                (LayerNo(number), self.marks()),
                Arc::clone(&image.source),
                self.shared_layers.clone(),
                &Limits::default(),
                Eagerness::Background,
                // Its layers may be asked for as tars.
                Trust { verify: Verify::BeforeShowing, index: IndexChoice::default().of_tars() },
            );
            let whole = Arc::clone(fs.image());
            tokio::spawn(async move { whole.prefetch(Prefetch::Profile).await });
            opened.insert(layer.id.clone(), Arc::clone(&fs));
            layers.push(fs);
        }
        Ok(Image { stored, layers })
    }

    /// The attribute of opaque directories in overlays, which differs for root and other users.
    fn marks(&self) -> OpaqueMark {
        if self.spec.allow_other { OpaqueMark::Both } else { crate::host::process::opaque_mark() }
    }

    async fn changed(
        self: &Arc<Self>,
        added: Option<String>,
        wait: bool,
        asker: &AsyncChannel,
    ) -> Result<(), HostError> {
        let mut failed = self.look().await?;
        let Some(hex) = added else { return Ok(()) };
        if let Some(error) = failed.remove(&hex) {
            return Err(error);
        }
        if !wait {
            return Ok(());
        }
        let layers = self.tree.layers_of(&hex);
        let known = async {
            for fs in &layers {
                fs.all_known().await?;
            }
            Ok::<_, HostError>(())
        };
        tokio::pin!(known);
        let mut ticks = tokio::time::interval(mount::TICK);
        loop {
            tokio::select! {
                known = &mut known => break known?,
                _ = ticks.tick() => {
                    let progress = layers.iter().map(|fs| fs.image().progress());
                    let (total, done) = progress.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                    match asker.send(&Word::Progress { total, done }, None) {
                        Err(error) if !error.is_full() => return Ok(()),
                        _ => {}
                    }
                }
            }
        }
        self.tree.refresh();
        Ok(())
    }
}

/// Answers commands that have changed records.
async fn listen(listener: Listener, store: Arc<Store>) {
    loop {
        match listener.accept().await {
            Ok(channel) => {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    if let Err(error) = answer(&channel, &store).await {
                        tracing::debug!(%error, "a command of the store was not answered");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

async fn answer(channel: &AsyncChannel, store: &Arc<Store>) -> Result<(), ChannelError> {
    channel.accept(ASKED_WITHIN).await?;
    let received = tokio::time::timeout(ASKED_WITHIN, channel.receive()).await.map_err(|_| ChannelError::Silent)?;
    let (text, _) = received?.ok_or(ChannelError::Gone)?;
    let word = match wire::parse::<Told>(&text) {
        Ok(Told::Changed { added, wait }) => match store.changed(added, wait, channel).await {
            Ok(()) => Word::Ready,
            Err(error) => Word::Failed((&Report::from(error)).into()),
        },
        Err(error) => {
            let why = format!("the process that serves the store cannot parse the command: {error}");
            Word::Failed((&Report::new(crate::host::report::Code::Failure, why)).into())
        }
    };
    channel.deliver(&word, None).await
}

/// The mapping of owners for engines of this user, unless it is root: they are root in a user namespace.
fn id_maps() -> Option<(IdMap, IdMap)> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if user == 0 {
        return None;
    }
    let range = |file: &str| subids::range(Path::new(file), user).unwrap_or((0, 0));
    Some((IdMap::new(user, range("/etc/subuid")), IdMap::new(group, range("/etc/subgid"))))
}

/// Time limit for a command to arrive.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
const BREATH: Duration = Duration::from_millis(50);
