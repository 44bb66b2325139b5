//! What the process that serves a store does: opens images, shows them, and answers commands.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::records::{Record, Records};
use super::{ImageStoreError, StoreSpec};
use crate::fuse::Requests;
use crate::host::activity::{self, Activity};
use crate::host::channel::{AsyncChannel, ChannelError, Listener};
use crate::host::error::HostError;
use crate::host::report::Report;
use crate::host::status::Health;
use crate::host::wire::v1::Word;
use crate::host::wire::v1::activity::MountActivity;
use crate::host::{mount, open, subids, wire};
use crate::image::{
    self, Eagerness, FileReport, ImageActivity, IndexChoice, LayerFs, LayerReport, Limits, OpaqueMark, Prefetch,
    SharedLayers, Trust, Verify,
};
use crate::image_store::{IdMap, Image, StoreTree, Stored};
use crate::overlay::LayerNo;
use crate::source::BlobSource as _;
use crate::source::registry::RegistrySource;
use crate::sync::lock;

/// A notification to the serving process; [`Word`]s are the answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Notice {
    /// Records were changed.
    Changed {
        /// The image that was added.
        added: Option<String>,
        /// Whether to verify all of its layers before the answer.
        wait: bool,
    },
}

/// A store that is being served.
pub(super) struct Store {
    spec: StoreSpec,
    pub(super) records: Records,
    shared_layers: SharedLayers,
    pub(super) tree: Arc<StoreTree>,
    /// Held while what is shown is changed. Layers that were opened and are not shown yet, by their ids.
    looking: tokio::sync::Mutex<Layers>,
    /// Registries of images, for what was received from them.
    registries: Mutex<Vec<Arc<RegistrySource>>>,
}

/// Layers by their ids.
type Layers = BTreeMap<String, Arc<LayerFs>>;

impl Store {
    pub(super) fn new(spec: &StoreSpec, records: Records, shared_layers: &SharedLayers) -> Arc<Self> {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        let files = Arc::clone(shared_layers.store());
        let make_file = Arc::new(move || files.unnamed_file());
        let tree = StoreTree::new((user, group), id_maps(), make_file, records.keep());
        let (spec, tree, shared_layers) = (spec.clone(), Arc::new(tree), shared_layers.clone());
        let (looking, registries) = Default::default();
        Arc::new(Self { spec, records, shared_layers, tree, looking, registries })
    }

    /// Opens all images, so that they can be shown soon.
    pub(super) async fn prepare(&self) -> Result<(), HostError> {
        let mut layers = self.looking.lock().await;
        self.open_all(self.records.all()?, &mut layers).await;
        self.open_all(self.records.removed()?, &mut layers).await;
        Ok(())
    }

    /// Shows what is recorded. An image that cannot be opened is left out, with a warning.
    pub(super) async fn look(&self) -> Result<BTreeMap<String, HostError>, HostError> {
        let mut layers = self.looking.lock().await;
        let (images, failed) = self.open_all(self.records.all()?, &mut layers).await;
        let (removed, _) = self.open_all(self.records.removed()?, &mut layers).await;
        self.tree.show(images, &removed).map_err(ImageStoreError::file(&self.records.numbers()))?;
        // How large they are is known when they are.
        for fs in std::mem::take(&mut *layers).into_values() {
            let tree = Arc::downgrade(&self.tree);
            tokio::spawn(async move {
                if fs.all_known().await.is_ok()
                    && let Some(tree) = tree.upgrade()
                    && let Err(error) = tree.refresh()
                {
                    tracing::warn!(%error, "engines are told a wrong size of a layer");
                }
            });
        }
        Ok(failed)
    }

    async fn open_all(
        &self,
        records: BTreeMap<String, Record>,
        opened: &mut Layers,
    ) -> (Vec<Image>, BTreeMap<String, HostError>) {
        let (mut images, mut failed) = (Vec::new(), BTreeMap::new());
        for (hex, record) in records {
            match self.open(&record, opened).await {
                Ok(image) => images.push(image),
                Err(error) => {
                    let name = record.names.first().map_or(&hex, |name| name);
                    tracing::warn!(error = image::chain(&error), name, "an image of the store cannot be shown");
                    failed.insert(hex, error);
                }
            }
        }
        (images, failed)
    }

    /// Opens an image; its layers that are shown already stay what they are, others come into `opened`.
    async fn open(&self, record: &Record, opened: &mut Layers) -> Result<Image, HostError> {
        let wrong = |cause| HostError::Channel { peer: "records of the store", cause: ChannelError::Wire(cause) };
        let mut spec = record.image(self.spec.on_outage).map_err(wrong)?;
        spec.cache = self.spec.cache.clone();
        let image = open::open_again(&spec, &record.root, &record.documents, &self.shared_layers).await?;
        if image.plan.manifest.digest != record.manifest {
            return Err(HostError::OtherManifest { reference: image.reference });
        }
        let stored = Stored::new(&image.plan, record.names.clone(), &record.added).ok_or(ImageStoreError::Documents)?;
        if let Some(outages) = image.source.outages() {
            outages.retry_without_limit(self.spec.on_outage);
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
                Trust { index: IndexChoice::default().of_tars(), ..image.trust(Verify::BeforeShowing) },
            );
            if let Some(registry) = &image.registry {
                let mut registries = lock(&self.registries);
                if !registries.iter().any(|known| Arc::ptr_eq(known, registry)) {
                    registries.push(Arc::clone(registry));
                }
            }
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
        Ok(self.tree.refresh().map_err(ImageStoreError::file(&self.records.numbers()))?)
    }

    /// How it is, for `peelfs status`.
    pub(super) fn health(&self) -> Health {
        let registries = lock(&self.registries);
        let stats: Vec<_> = registries.iter().map(|registry| registry.stats()).collect();
        let outages: Vec<_> = registries.iter().filter_map(|registry| registry.outages()).collect();
        let (images, layers) = self.tree.shown_layers();
        Health {
            images: Some(images),
            image_bytes: layers.iter().map(|(bytes, _)| bytes).sum(),
            received_bytes: stats.iter().map(|stats| stats.bytes_received).sum(),
            requests: stats.iter().map(|stats| stats.requests).sum(),
            // Each image has its own.
            hosts: Vec::new(),
            waiting: outages.iter().flat_map(|outages| outages.status()).collect(),
            refused: outages.iter().find_map(|outages| outages.refusal()),
            not_kept: layers.first().and_then(|(_, fs)| fs.image().not_kept()),
            // It asks for none.
            no_pushed_index: None,
            layers: layers.iter().filter_map(|(_, fs)| fs.image().layer_status().pop()).collect(),
        }
    }

    /// What it has fetched, and who waits.
    pub(super) fn activity(&self, requests: &Requests, files: u32) -> Activity {
        let (images, layers) = self.tree.shown_layers();
        let mut seen = ImageActivity::default();
        for (number, (_, fs)) in (0..).map(LayerNo).zip(&layers) {
            // Those below it have an entry of their own.
            let of_layer = fs.image().activity();
            let Some(layer) = of_layer.layers.last().cloned() else { continue };
            let own = of_layer.files.into_iter().filter(|file| file.layer == layer.number);
            seen.files.extend(own.map(|file| FileReport { layer: number, ..file }));
            seen.layers.push(LayerReport { number, ..layer });
        }
        let registries = lock(&self.registries).clone();
        let mount = MountActivity {
            images: Some(images as u64),
            image_bytes: layers.iter().map(|(bytes, _)| bytes).sum(),
            ..activity::mount(registries.iter().map(|registry| &**registry), requests)
        };
        Activity::new(mount, seen, files).waiting_for(requests, |node| self.tree.path_of(node))
    }

    pub(super) fn images(&self) -> usize {
        self.tree.shown_layers().0
    }
}

/// Answers commands that have changed records.
pub(super) async fn listen(listener: Listener, store: Arc<Store>) {
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
    let word = match wire::parse::<Notice>(&text) {
        Ok(Notice::Changed { added, wait }) => match store.changed(added, wait, channel).await {
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
