//! What runs inside a machine: a program given from outside, or a plain system that boots, reports its tools and obeys.
//!
//! `power` awakens a guest in each new domain; [`Guests::add`] says which program runs where. A program sees its machine through
//! [`Guest`] and nothing else of the pool. It must not know who looks on from outside.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;

mod disks;
pub use disks::plugged;

use super::{
    Pool,
    domain::{Request, StoreError},
    metrics,
    power::{Exit, left},
    reflect::{ON_ITS_WAY, publish},
};

/// A system is up so long after its domain was made.
pub const BOOT: Duration = Duration::from_secs(1);
/// From a request to the end of a system that obeys.
const OBEY: Duration = Duration::from_millis(500);

/// Runs at each boot of a machine, until it says how the boot ends. It is dropped when the machine is stopped from outside.
pub type Program = Arc<dyn Fn(Guest) -> Pin<Box<dyn Future<Output = Exit> + Send>> + Send + Sync>;

/// Makes a program of an asynchronous function.
pub fn program<F>(run: impl Fn(Guest) -> F + Send + Sync + 'static) -> Program
where
    F: Future<Output = Exit> + Send + 'static,
{
    Arc::new(move |guest| Box::pin(run(guest)))
}

/// Which machines a program is for: all that is named must fit. In a name `*` stands for any text, wherever it is and as often.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    #[serde(deserialize_with = "pattern")]
    pub name: Option<String>,
    pub tag: Option<String>,
    /// uuid or name of a disk that the machine has.
    pub disk: Option<String>,
}

/// A pattern from outside: other wildcards than `*` would be taken for letters, which nobody means who writes them.
fn pattern<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let given: Option<String> = serde::Deserialize::deserialize(from)?;
    match given.as_ref().filter(|text| text.contains(['?', '[', '{'])) {
        Some(text) => Err(serde::de::Error::custom(format!("'{text}': of the wildcards only * is known"))),
        None => Ok(given),
    }
}

/// Whether a name is like a pattern.
fn like(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[derive(Default)]
struct Known {
    rules: Vec<(Match, Program)>,
    boots: BTreeMap<String, u64>,
}

/// Programs, and what a guest remembers beyond a boot.
#[derive(Default)]
pub struct Guests(Mutex<Known>);

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From their next boot on, machines that fit run this program; a later rule goes before an earlier one.
    pub fn add(&self, which: Match, program: Program) {
        self.lock().rules.insert(0, (which, program));
    }

    /// Every machine is a plain system again.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }
}

/// A machine as its own system sees it, in one boot.
#[derive(Clone)]
pub struct Guest {
    pool: Arc<Pool>,
    /// The machine's uuid.
    pub vm: String,
    pub name: String,
    /// See [`super::domain::Domain::born`].
    born: i64,
    /// 1 at the machine's first boot.
    pub boot: u64,
}

/// Starts the guest of a machine's present domain.
pub fn awaken(pool: &Arc<Pool>, vm: &str) {
    let Some(born) = pool.world.domains.born(vm) else { return };
    let (name, which) = {
        let db = pool.db();
        let Ok(row) = db.by_uuid("VM", vm) else { return };
        let name = db.text("VM", &row, "name_label").unwrap_or_default().to_owned();
        let known = pool.world.guests.lock();
        let found = known.rules.iter().find(|(rule, _)| fits(&db, &row, &name, rule));
        (name, found.map(|(_, program)| Arc::clone(program)))
    };
    let boot = {
        let mut known = pool.world.guests.lock();
        let count = known.boots.entry(vm.to_owned()).or_default();
        *count += 1;
        *count
    };
    let guest = Guest { pool: Arc::clone(pool), vm: vm.to_owned(), name, born, boot };
    let work = run(guest, which);
    if let Some(running) = pool.world.spawn(work) {
        pool.world.domains.inhabit(vm, running);
    }
}

fn fits(db: &super::db::Db, vm: &crate::xapi::wire::Ref, name: &str, rule: &Match) -> bool {
    let named = |wanted: &String| like(wanted, name);
    let tags = db.field("VM", vm, "tags").ok().and_then(Value::as_array);
    let tagged = |wanted: &String| tags.into_iter().flatten().any(|t| t.as_str() == Some(wanted));
    let has = |wanted: &String| {
        let vbds = db.links("VM", vm, "VBDs").unwrap_or_default();
        let vdis = vbds.iter().filter_map(|vbd| db.link_to("VBD", vbd, "VDI").ok());
        let row = |vdi| db.find("VDI", &vdi).cloned();
        let known = |row: super::schema::Record| {
            ["uuid", "name_label"].iter().any(|f| row.get(*f).and_then(Value::as_str) == Some(wanted))
        };
        vdis.filter_map(row).any(known)
    };
    rule.name.iter().all(named) && rule.tag.iter().all(tagged) && rule.disk.iter().all(has)
}

/// One boot: the program, and beside it the part of every system that listens to requests and lets the host read the store.
async fn run(guest: Guest, program: Option<Program>) {
    let (pool, vm, born) = (Arc::clone(&guest.pool), guest.vm.clone(), guest.born);
    let inside = async {
        match program {
            Some(program) => program(guest.clone()).await,
            None => plain(&guest).await,
        }
    };
    let both = async {
        tokio::select! {
            exit = inside => exit,
            exit = obey(&guest) => exit,
        }
    };
    let exit = scheduled(&pool, &vm, born, both).await;
    // Ending the domain ends this task: whatever comes of it must not be a part of it.
    let after = Arc::clone(&pool);
    pool.world.spawn(async move { left(&after, &vm, born, exit) });
}

/// Nothing moves inside a machine that is paused or suspended: the work goes on from where it stood once the domain runs again.
async fn scheduled<T>(pool: &Pool, vm: &str, born: i64, work: impl Future<Output = T>) -> T {
    let runs = |d: Option<&super::domain::Domain>| d.is_some_and(|d| d.born == born && !d.paused);
    let mut work = std::pin::pin!(work);
    loop {
        pool.world.domains.until(vm, runs).await;
        tokio::select! {
            biased;
            () = pool.world.domains.until(vm, |d| !runs(d)) => {}
            done = &mut work => return done,
        }
    }
}

/// A system without a script.
async fn plain(guest: &Guest) -> Exit {
    guest.stage("boot", BOOT).await;
    guest.set_tools(true);
    // A system whose domain is gone has nobody to report to.
    guest.report_tools().await.unwrap_or_default();
    std::future::pending().await
}

async fn obey(guest: &Guest) -> Exit {
    let domains = &guest.pool.world.domains;
    let asked = |d: Option<&super::domain::Domain>| {
        d.is_some_and(|d| d.born == guest.born && !d.deaf && d.request.borrow().is_some())
    };
    domains.until(&guest.vm, asked).await;
    let request = domains.with(&guest.vm, |d| {
        d.heard = true;
        *d.request.borrow()
    });
    guest.stage("obey", OBEY).await;
    match request.flatten() {
        Some(Request::Reboot) => Exit::Reboot,
        Some(Request::Halt) | None => Exit::Halt,
    }
}

impl Guest {
    /// A moment that a test may hold: `guest/<name>/<machine's uuid>`.
    pub async fn stage(&self, name: &str, lasting: Duration) {
        self.pool.clock.stage(&format!("guest/{name}/{}", self.vm), lasting).await;
    }

    /// The number of the present domain, which the guest finds in its store; after a resume it is another one.
    pub fn domid(&self) -> i64 {
        self.pool.world.domains.domid(&self.vm).unwrap_or(self.born)
    }

    /// What the machine's clock shows.
    pub fn now(&self) -> String {
        self.pool.clock.stamp()
    }

    /// The whole store of the domain.
    pub fn store(&self) -> BTreeMap<String, String> {
        self.pool.world.domains.read(&self.vm, self.born)
    }

    pub fn read(&self, key: &str) -> Option<String> {
        self.store().remove(key)
    }

    /// Writes keys in one transaction. The pool sees them a moment later; it never does if the domain is gone by then (xapi.md 7.4).
    pub async fn write(&self, keys: &BTreeMap<String, String>) -> Result<(), StoreError> {
        self.pool.world.domains.write(&self.vm, self.born, keys)?;
        self.announce();
        Ok(())
    }

    /// Removes keys and all below them.
    pub fn remove(&self, keys: &[String]) -> Result<(), StoreError> {
        self.pool.world.domains.remove(&self.vm, self.born, keys)?;
        self.announce();
        Ok(())
    }

    fn announce(&self) {
        let (pool, vm, domid) = (Arc::clone(&self.pool), self.vm.clone(), self.domid());
        self.pool.world.spawn(async move {
            pool.clock.stage(&format!("guest/seen/{vm}"), ON_ITS_WAY).await;
            if pool.world.domains.domid(&vm) == Some(domid) {
                publish(&pool, &vm);
            }
        });
    }

    /// Drivers connect and the agent reports (xapi.md 7.2).
    pub async fn report_tools(&self) -> Result<(), StoreError> {
        self.write(&metrics::drivers()).await?;
        let last = self.born % 250 + 2;
        self.write(&metrics::agent(&format!("192.0.2.{last}"))).await
    }

    /// From now on nobody inside hears a request to shut down.
    pub fn refuse_shutdown(&self, on: bool) {
        self.pool.world.domains.with(&self.vm, |d| d.deaf = on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text_anywhere() {
        for (pattern, name, expected) in [
            ("pack-*", "pack-1", true),
            ("pack-*", "a pack-1", false),
            ("*-1", "pack-1", true),
            ("*-1", "pack-12", false),
            ("p*k*1", "pack-1", true),
            ("p*k*1", "pa-1", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("a", "ab", false),
        ] {
            assert_eq!(like(pattern, name), expected, "{pattern} {name}");
        }
    }
}
