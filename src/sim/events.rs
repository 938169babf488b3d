//! `event.from` and its kin (xapi.md 5, 14).
//!
//! Level-triggered: what comes is each object's newest state since a token, not its history. Which objects are told of is chosen at one
//! moment, their records are read at a later one (xapi's xapi_event.ml): a task may be told at its end, and what it made only by the next answer. Deletions are remembered for a while
//! only, and nobody says that one was lost. Waiting is done in real time, for a client's own deadline is real.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::db::Db;
use super::schema::schema;
use super::{Answer, Call, Pool};
use crate::xapi::wire::{Failure, Ref};

/// The server gathers changes for so long before it answers (xapi.md 5, Batching).
const BATCH: Duration = Duration::from_millis(50);
/// The legacy queue keeps so many changes.
const QUEUE: u64 = 512;
/// A nonsensical timeout means a day (xapi.md 5, Timeout).
const DAY: f64 = 86_400.0;

/// What a client asked for.
enum Filter {
    All,
    Class(String),
    Object(String, String),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            ["*"] => Ok(Self::All),
            [class] if !class.is_empty() => Ok(Self::Class(class.to_lowercase())),
            [class, object] => Ok(Self::Object(class.to_lowercase(), (*object).to_owned())),
            _ => Err(Failure::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", [text])),
        }
    }

    fn wants(&self, class: &str, reference: &Ref) -> bool {
        match self {
            Self::All => true,
            Self::Class(c) => c == class,
            Self::Object(c, r) => c == class && r == reference.as_str(),
        }
    }
}

/// The calls of class `event`.
pub async fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    if call.class != "event" {
        return None;
    }
    match call.message {
        "from" => Some(from(pool, call).await),
        "register" | "unregister" => Some(subscribe(pool, call)),
        "next" => Some(next(pool, call).await),
        "inject" => Some(inject(pool, call)),
        "get_current_id" => Some(Ok(json!(pool.db().generation()))),
        _ => None,
    }
}

async fn from(pool: &Pool, call: &Call) -> Answer {
    let filters = call.value(0).as_array().map(Vec::as_slice).unwrap_or_default();
    let filters =
        filters.iter().map(|f| Filter::parse(f.as_str().unwrap_or_default())).collect::<Result<Vec<_>, _>>()?;
    let since = parse_token(call.text(1))?;
    let timeout = call.value(2).as_f64().filter(|t| (0.0..=DAY).contains(t)).unwrap_or(DAY);
    let deadline = tokio::time::Instant::now() + Duration::from_secs_f64(timeout);
    loop {
        let (news, counts, next, mut changed) = {
            let db = pool.db();
            if db.find("session", &call.session).is_none() {
                return Err(Failure::new("SESSION_INVALID", [call.session.as_str()]));
            }
            (News::since(&db, &filters, since), counts(&db), token(db.generation()), db.watch())
        };
        if !news.0.is_empty() || tokio::time::Instant::now() >= deadline {
            pool.clock.stage("event.from/read", Duration::ZERO).await;
            return Ok(json!({"events": news.told(&pool.db()), "valid_ref_counts": counts, "token": next}));
        }
        // The sender lives as long as the pool; at the deadline the loop answers with what there is.
        let _ = tokio::time::timeout_at(deadline, changed.changed()).await;
        tokio::time::sleep(BATCH).await;
    }
}

/// What is to be told of: class, operation, generation and object.
struct News(Vec<(&'static str, &'static str, u64, Ref)>);

impl News {
    /// `since` is `None` for the initial dump.
    fn since(db: &Db, filters: &[Filter], since: Option<u64>) -> Self {
        let wants = |class: &str, reference: &Ref| {
            class != "session" && filters.iter().any(|f| f.wants(&class.to_lowercase(), reference))
        };
        let last = since.unwrap_or_default();
        let changes = db.changes_since(last).filter(|c| wants(c.class, c.reference)).map(|c| {
            let operation = if c.created > last { "add" } else { "mod" };
            (c.class, operation, c.modified, c.reference.clone())
        });
        // A first answer carries deletions from before it, too (xapi.md 14, Events); made and gone within a gap is not told.
        let gone = db.deletions().filter(|(class, d)| {
            wants(class, &d.reference) && since.is_none_or(|last| d.deleted > last && d.created <= last)
        });
        Self(changes.chain(gone.map(|(class, d)| (class, "del", d.deleted, d.reference.clone()))).collect())
    }

    /// With the records as they are now. What has gone meanwhile is told by the next answer.
    fn told(&self, db: &Db) -> Vec<Value> {
        let event = |(class, operation, at, reference): &(&'static str, &str, u64, Ref)| {
            let mut event = Map::new();
            event.insert("id".into(), json!(at.to_string()));
            event.insert("timestamp".into(), json!("0.0"));
            event.insert("class".into(), json!(class.to_lowercase()));
            event.insert("operation".into(), json!(operation));
            event.insert("ref".into(), json!(reference));
            if *operation != "del" {
                event.insert("snapshot".into(), Value::Object(db.find(class, reference)?.clone()));
            }
            Some(Value::Object(event))
        };
        self.0.iter().filter_map(event).collect()
    }
}

fn counts(db: &Db) -> Map<String, Value> {
    schema().tables.iter().map(|class| (class.to_lowercase(), json!(db.count(class)))).collect()
}

/// Generations of the database and of the messages, which the simulator counts together.
fn token(generation: u64) -> String {
    format!("{generation:020},{:020}", 0)
}

fn parse_token(token: &str) -> Result<Option<u64>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    let parts = token.split_once(',').and_then(|(a, b)| Some((a.parse().ok()?, b.parse::<u64>().ok()?)));
    let (generation, _) = parts.ok_or_else(|| Failure::new("EVENT_FROM_TOKEN_PARSE_FAILURE", [token]))?;
    Ok(Some(generation))
}

/// What a session registered for, with the generation it has seen (xapi.md 5, "Legacy"). Ends with its session.
#[derive(Default)]
pub struct Subscriptions(Mutex<HashMap<Ref, (BTreeSet<String>, u64)>>);

impl Subscriptions {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ref, (BTreeSet<String>, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_registered(session: &Ref) -> Failure {
    Failure::new("SESSION_NOT_REGISTERED", [session.as_str()])
}

/// `event.register` and `event.unregister`: classes, or `*`; none at all means every class.
fn subscribe(pool: &Pool, call: &Call) -> Answer {
    let given = call.value(0).as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_lowercase);
    let mut given: BTreeSet<String> = given.collect();
    if given.is_empty() {
        given.insert("*".to_owned());
    }
    let (alive, now): (BTreeSet<Ref>, u64) = {
        let db = pool.db();
        (db.all("session").map(|(r, _)| r.clone()).collect(), db.generation())
    };
    let mut all = pool.subscriptions.lock();
    all.retain(|session, _| alive.contains(session));
    if call.message == "register" {
        all.entry(call.session.clone()).or_insert((BTreeSet::new(), now)).0.append(&mut given);
        return Ok(json!(""));
    }
    let (classes, _) = all.get_mut(&call.session).ok_or_else(|| not_registered(&call.session))?;
    classes.retain(|class| !given.contains(class) && !given.contains("*"));
    if classes.is_empty() {
        all.remove(&call.session);
    }
    Ok(json!(""))
}

/// `event.next`: what happened since the last one, and waits for it as long as it takes.
///
/// # Errors
/// `SESSION_NOT_REGISTERED [session]`; `EVENTS_LOST []` where more happened than the daemon keeps; `SESSION_INVALID` while it waits.
async fn next(pool: &Pool, call: &Call) -> Answer {
    loop {
        let mut changed = {
            let db = pool.db();
            if db.find("session", &call.session).is_none() {
                return Err(Failure::new("SESSION_INVALID", [call.session.as_str()]));
            }
            let mut all = pool.subscriptions.lock();
            let (classes, seen) = all.get_mut(&call.session).ok_or_else(|| not_registered(&call.session))?;
            let since = std::mem::replace(seen, db.generation());
            if db.generation().saturating_sub(since) > QUEUE {
                return Err(Failure::new::<String>("EVENTS_LOST", []));
            }
            let filters = classes.iter().map(|class| Filter::parse(class)).collect::<Result<Vec<_>, _>>()?;
            let news = News::since(&db, &filters, Some(since));
            if !news.0.is_empty() {
                return Ok(Value::Array(news.told(&db)));
            }
            db.watch()
        };
        // The sender lives as long as the pool.
        let _ = changed.changed().await;
    }
}

/// Touches an object; the token is later than everything before it: a barrier.
fn inject(pool: &Pool, call: &Call) -> Answer {
    // By the table's own name: `vm` is none.
    let class = call.text(0);
    let mut db = pool.db();
    let before = db.generation();
    db.touch(class, &call.reference(1))?;
    Ok(json!(token(before)))
}
