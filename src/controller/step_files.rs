//! The files of a layer's steps: what is in them, and which objects they come from.
//!
//! Called by `act` when a config disk is made or written, and by `layer` before a machine first starts. Read one by one, each when it is
//! needed, and never kept: an object may be somebody's Secret. What is told of one, and kept, is its place among the API server's writes
//! (uid and resourceVersion): that says that it was written since, and nothing of what is in it. A digest would let whoever may see the disk's
//! row try out short secrets.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use lamina_guest::disk::MOST_FILES_BYTES;
use sha2::{Digest, Sha256};

use super::observe::{Lens, Scene};
use crate::api::reason::Reason;
use crate::api::steps::{KeyRef, StepFile};
use crate::domain::observed::Trouble;
use crate::domain::plan::{self, Plan};

/// What the files are.
pub struct Files {
    /// By names of step and file. May be anybody's secret.
    pub bytes: BTreeMap<(String, String), Vec<u8>>,
    /// The states of the objects that they came from, as one word.
    pub origin: String,
}

/// One state of one object.
type State = (&'static str, String, Option<String>, Option<String>);

/// Where a file comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source<'a> {
    Secret(&'a KeyRef),
    ConfigMap(&'a KeyRef),
}

impl<'a> Source<'a> {
    /// The API server lets no file in without one.
    fn of(file: &'a StepFile) -> Option<Self> {
        let map = file.config_map_key_ref.as_ref().map(Self::ConfigMap);
        file.secret_key_ref.as_ref().map(Self::Secret).or(map)
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Secret(_) => "Secret",
            Self::ConfigMap(_) => "ConfigMap",
        }
    }

    fn key(self) -> &'a KeyRef {
        match self {
            Self::Secret(key) | Self::ConfigMap(key) => key,
        }
    }

    fn state(self, meta: ObjectMeta) -> State {
        (self.kind(), self.key().name.clone(), meta.uid, meta.resource_version)
    }
}

/// Files may have changed since they were put on the config disk, and no event tells of that: where it matters it is asked, and decided anew.
pub async fn compare(lens: &Lens<'_>, scene: &mut Scene, plan: &mut Plan) -> Result<(), Trouble> {
    if !lens.deleting && plan::asks_for_files(lens.want, &scene.observed, plan) {
        scene.observed.files = Some(origin(lens).await?);
        *plan = plan::decide(lens.want, &scene.observed);
    }
    Ok(())
}

/// Every file, and the states of the objects that they were read from.
pub async fn read(lens: &Lens<'_>) -> Result<Files, Trouble> {
    let (mut bytes, mut states, mut all) = (BTreeMap::new(), BTreeSet::new(), 0);
    for (step, file) in named(lens) {
        let Some(source) = Source::of(file) else { continue };
        let (content, state) = content(lens, source).await?.ok_or_else(|| missing(lens, step, file, source))?;
        states.insert(state);
        all += content.len() as u64;
        if all > MOST_FILES_BYTES {
            let told = format!(
                "the files of all steps have more than {} MiB, which is the most that a config disk carries: have steps fetch large files themselves, or put them into the OS layer",
                MOST_FILES_BYTES >> 20
            );
            return Err(Trouble::new(Reason::StepsTooLarge, told));
        }
        bytes.insert((step.to_owned(), file.name.clone()), content);
    }
    Ok(Files { bytes, origin: hash(&states) })
}

/// The states in which the objects of all files are now, as one word: equal, and nobody wrote one of them since. Their content is not read.
async fn origin(lens: &Lens<'_>) -> Result<String, Trouble> {
    let mut states = BTreeSet::new();
    for (step, file) in named(lens) {
        let Some(source) = Source::of(file) else { continue };
        let meta = match source {
            Source::Secret(from) => {
                let secrets: Api<Secret> = Api::namespaced(lens.client.clone(), &lens.want.namespace);
                in_time(lens, secrets.get_metadata_opt(&from.name)).await?.map(|s| s.metadata)
            }
            Source::ConfigMap(from) => {
                let maps: Api<ConfigMap> = Api::namespaced(lens.client.clone(), &lens.want.namespace);
                in_time(lens, maps.get_metadata_opt(&from.name)).await?.map(|m| m.metadata)
            }
        };
        states.insert(source.state(meta.ok_or_else(|| missing(lens, step, file, source))?));
    }
    Ok(hash(&states))
}

fn named<'a>(lens: &Lens<'a>) -> impl Iterator<Item = (&'a str, &'a StepFile)> {
    lens.want.steps.iter().flat_map(|step| step.files.iter().map(|file| (step.name.as_str(), file)))
}

/// The bytes at the key, and the state that they were read in.
async fn content(lens: &Lens<'_>, source: Source<'_>) -> Result<Option<(Vec<u8>, State)>, Trouble> {
    let (content, meta) = match source {
        Source::Secret(from) => {
            let secrets: Api<Secret> = Api::namespaced(lens.client.clone(), &lens.want.namespace);
            let Some(secret) = in_time(lens, secrets.get_opt(&from.name)).await? else { return Ok(None) };
            (secret.data.and_then(|mut d| d.remove(&from.key)).map(|bytes| bytes.0), secret.metadata)
        }
        Source::ConfigMap(from) => {
            let maps: Api<ConfigMap> = Api::namespaced(lens.client.clone(), &lens.want.namespace);
            let Some(map) = in_time(lens, maps.get_opt(&from.name)).await? else { return Ok(None) };
            let text = map.data.and_then(|mut d| d.remove(&from.key)).map(String::into_bytes);
            let binary = || map.binary_data?.remove(&from.key).map(|bytes| bytes.0);
            (text.or_else(binary), map.metadata)
        }
    };
    Ok(content.map(|bytes| (bytes, source.state(meta))))
}

fn missing(lens: &Lens<'_>, step: &str, file: &StepFile, source: Source<'_>) -> Trouble {
    let (kind, from) = (source.kind(), source.key());
    Trouble::new(
        Reason::StepFileNotFound,
        format!(
            "file '{}' of step '{step}' is to come from key '{}' of {kind} '{}' in namespace '{}', which is not there: create it, or correct spec.steps",
            file.name, from.key, from.name, lens.want.namespace
        ),
    )
}

async fn in_time<T>(lens: &Lens<'_>, read: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
    let told = || {
        let what = "the Kubernetes API did not say what the files of spec.steps are; it is asked again";
        Trouble::new(Reason::APIServerError, what)
    };
    tokio::time::timeout(lens.pace.write, read).await.map_err(|_| told())?.map_err(|_| told())
}

fn hash(states: &BTreeSet<State>) -> String {
    let text = serde_json::to_vec(states).unwrap_or_default();
    Sha256::digest(text).iter().take(8).map(|b| format!("{b:02x}")).collect()
}
