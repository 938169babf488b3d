//! Sessions, users and roles (xapi.md 2).
//!
//! Asked by `rpc` before every call. Sessions live in the database's memory only: a restart of the daemon takes them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::schema::schema;
use super::{Answer, Call, Pool};
use crate::xapi::wire::{Failure, Ref, parse_time};

/// Roles from the least to the greatest (xapi.md 2.3).
const ROLES: [&str; 6] = ["read-only", "vm-operator", "vm-admin", "vm-power-admin", "pool-operator", "pool-admin"];
/// Sessions of the local root without an originator, and of everybody else per originator or user (xapi.md 2.2).
const CAPS: (usize, usize) = (400, 500);
/// A session dies unused after this time (xapi.md 2.2).
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// `last_active` moves at most so often (xapi.md 2.2).
const ACTIVE: Duration = Duration::from_secs(600);

/// Who may log in. Without a role: the local root, who stands above roles.
#[derive(Clone, Debug)]
pub struct Account {
    pub name: String,
    pub password: String,
    pub role: Option<String>,
}

pub struct Accounts {
    accounts: Mutex<Vec<Account>>,
    /// What each session may do is settled when it begins; a role given later counts from the next log-in on.
    roles: Mutex<HashMap<Ref, Option<String>>>,
    /// How long a wrong password is left waiting for its refusal: about 5 s on a real host (xapi.md 2.1).
    delay: Mutex<Duration>,
}

impl Accounts {
    pub fn new(accounts: Vec<Account>, delay: Duration) -> Self {
        Self { accounts: Mutex::new(accounts), roles: Mutex::default(), delay: Mutex::new(delay) }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roles(&self) -> MutexGuard<'_, HashMap<Ref, Option<String>>> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a user, or changes the password and role of the one with that name.
    pub fn put(&self, account: Account) {
        let mut list = self.list();
        list.retain(|a| a.name != account.name);
        list.push(account);
    }

    pub fn set_delay(&self, delay: Duration) {
        *self.delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }
}

/// `session.login_with_password(uname, pwd, version, originator)`.
pub async fn login(pool: &Pool, host: &Ref, user: &str, password: &str, originator: &str) -> Answer {
    let account = pool.accounts.list().iter().find(|a| a.name == user && a.password == password).cloned();
    let Some(account) = account else {
        let delay = *pool.accounts.delay.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::time::sleep(delay).await;
        return Err(Failure::new("SESSION_AUTHENTICATION_FAILED", [user, "Authentication failure"]));
    };
    let mut db = pool.db();
    let now = json!(pool.clock.stamp());
    let row = [
        ("this_host", json!(host)),
        ("last_active", now.clone()),
        ("validation_time", now),
        ("pool", json!(true)),
        ("is_local_superuser", json!(account.role.is_none())),
        ("auth_user_name", json!(user)),
        ("rbac_permissions", json!(account.role.as_deref().map(permissions).unwrap_or_default())),
        ("originator", json!(originator)),
    ];
    let session = db.create("session", row);
    let mut roles = pool.accounts.roles();
    roles.retain(|session, _| db.find("session", session).is_some());
    roles.insert(session.clone(), account.role.clone());
    drop(roles);
    let mut same: Vec<(String, Ref)> = db
        .all("session")
        .filter(|(r, s)| {
            let text = |field: &str| s.get(field).and_then(Value::as_str).unwrap_or_default();
            **r != session
                && text("auth_user_name") == user
                && (account.role.is_some() || text("originator") == originator)
        })
        .map(|(r, s)| (s.get("last_active").and_then(Value::as_str).unwrap_or_default().to_owned(), r.clone()))
        .collect();
    same.sort();
    let cap = if account.role.is_none() && originator.is_empty() { CAPS.0 } else { CAPS.1 };
    for (_, oldest) in same.iter().take((same.len() + 1).saturating_sub(cap)) {
        db.delete("session", oldest);
    }
    Ok(json!(session))
}

/// All permissions of a role, in lower case as refusals name them (xapi.md 2.3).
pub fn permissions(role: &str) -> Vec<String> {
    let may = |needed: &str| rank(role) >= rank(needed);
    let classes = schema().classes.values();
    let all =
        classes.flat_map(|c| c.messages.values().filter(|m| may(&m.role)).map(|m| format!("{}.{}", c.name, m.name)));
    all.map(|p| p.to_lowercase()).collect()
}

fn rank(role: &str) -> usize {
    ROLES.iter().position(|r| *r == role).unwrap_or_default()
}

/// Lets a call pass, or says why not. Moves `last_active` now and then.
///
/// # Errors
/// `SESSION_INVALID [ref]`, which echoes whatever was sent (xapi.md 14), or `RBAC_PERMISSION_DENIED [permission, text]`.
pub fn check(pool: &Pool, session: &Ref, permission: &str, needed: &str) -> Result<(), Failure> {
    let mut db = pool.db();
    let row = db.find("session", session).ok_or_else(|| Failure::new("SESSION_INVALID", [session.as_str()]))?;
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    // One that did not begin by a log-in may do nothing.
    let role = pool.accounts.roles().get(session).cloned().unwrap_or_else(|| Some(String::new()));
    if role.is_some_and(|role| rank(&role) < rank(needed)) {
        let text = "No permission in user session. (Roles with this permission are shown in the documentation)";
        return Err(Failure::new("RBAC_PERMISSION_DENIED", [&permission.to_lowercase(), text]));
    }
    let now = pool.clock.now();
    if parse_time(text("last_active")).is_none_or(|at| now.duration_since(at).unsigned_abs() > ACTIVE) {
        db.set("session", session, "last_active", json!(pool.clock.stamp()))?;
    }
    Ok(())
}

/// Drops sessions that nobody has used for a day.
pub fn collect(pool: &Pool) {
    let mut db = pool.db();
    let now = pool.clock.now();
    let idle = |row: &super::schema::Record| {
        let at = row.get("last_active").and_then(Value::as_str).and_then(parse_time);
        at.is_some_and(|at| now.duration_since(at).unsigned_abs() > IDLE)
    };
    let dead: Vec<Ref> = db.all("session").filter(|(_, row)| idle(row)).map(|(r, _)| r.clone()).collect();
    dead.iter().for_each(|session| db.delete("session", session));
}

/// The calls of class `session` that need one.
pub fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    match (call.class, call.message) {
        // Calls under way go on; the next one is refused (xapi.md 14, Sessions).
        ("session", "logout") => {
            pool.db().delete("session", &call.session);
            Some(Ok(json!("")))
        }
        _ => None,
    }
}
