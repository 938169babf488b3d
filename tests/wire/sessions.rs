//! Sessions, users and roles: xapi.md 2 and 14.

use std::time::{Duration, Instant};

use super::{Raw, failure};
use lamina::sim::session::Account;
use serde_json::json;

/// xapi.md 2.1 and 14, Log in: user and text, after a delay; a bogus session is echoed.
#[tokio::test]
async fn wrong_credentials_and_sessions_are_refused() {
    let raw = Raw::new().await;
    raw.sim.pool.accounts.set_delay(Duration::from_millis(300));
    let asked = Instant::now();
    let refused = raw.bare("session.login_with_password", json!(["root", "wrong"])).await;
    assert_eq!(refused, failure(["SESSION_AUTHENTICATION_FAILED", "root", "Authentication failure"]));
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        raw.bare("VM.get_all", json!(["OpaqueRef:bogus"])).await,
        failure(["SESSION_INVALID", "OpaqueRef:bogus"])
    );
    raw.call("session.logout", json!([])).await.unwrap();
    assert_eq!(raw.call("VM.get_all", json!([])).await, failure(["SESSION_INVALID", &raw.session]));
}

/// xapi.md 2.2: above the cap of an originator its oldest sessions go; others are left alone. Without an originator the cap is lower.
#[tokio::test]
async fn the_cap_is_per_originator() {
    let raw = Raw::new().await;
    let other = raw.bare("session.login_with_password", json!(["root", "secret", "1.0", "other"])).await.unwrap();
    for _ in 0..500 {
        raw.login("root", "secret").await.unwrap();
    }
    assert_eq!(raw.sim.pool.db().count("session"), 501);
    for _ in 0..410 {
        raw.bare("session.login_with_password", json!(["root", "secret"])).await.unwrap();
    }
    assert_eq!(raw.sim.pool.db().count("session"), 501 + 400);
    raw.bare("VM.get_all", json!([other])).await.unwrap();
}

/// xapi.md 2.3: a role below the call's is refused, with the permission in lower case.
#[tokio::test]
async fn roles_bound_what_a_user_may_call() {
    let mut raw = Raw::new().await;
    let account = |role: &str| Account { name: "op".into(), password: "p".into(), role: Some(role.into()) };
    raw.sim.pool.accounts.put(account("vm-admin"));
    let vm = raw.row("VM", "x");
    raw.session = raw.login("op", "p").await.unwrap();
    raw.call("VM.set_name_description", json!([vm, "d"])).await.unwrap();
    let refused = raw.call("pool.sync_database", json!([])).await.unwrap_err();
    assert_eq!(refused[..2], ["RBAC_PERMISSION_DENIED", "pool.sync_database"]);
    let refused = raw.call("SR.scan", json!(["OpaqueRef:x"])).await.unwrap_err();
    assert_eq!(refused[..2], ["RBAC_PERMISSION_DENIED", "sr.scan"]);
    let allowed = raw.call("session.get_rbac_permissions", json!([raw.session])).await.unwrap();
    assert!(
        allowed.as_array().unwrap().contains(&json!("vdi.clone"))
            && !allowed.as_array().unwrap().contains(&json!("sr.scan"))
    );
    assert_eq!(raw.call("session.get_is_local_superuser", json!([raw.session])).await, Ok(json!(false)));
    // xapi.md 2.3: some keys of a map need less than the map.
    raw.sim.pool.accounts.put(account("vm-operator"));
    raw.session = raw.login("op", "p").await.unwrap();
    raw.call("VM.add_to_other_config", json!([vm, "folder", "/a"])).await.unwrap();
    let refused = raw.call("VM.add_to_other_config", json!([vm, "k", "v"])).await.unwrap_err();
    assert_eq!(refused[..2], ["RBAC_PERMISSION_DENIED", "vm.add_to_other_config"]);
    // A session keeps the rights that it began with.
    raw.sim.pool.accounts.put(account("pool-operator"));
    let refused = raw.call("pool.sync_database", json!([])).await.unwrap_err();
    assert_eq!(refused[0], "RBAC_PERMISSION_DENIED");
    raw.session = raw.login("op", "p").await.unwrap();
    raw.call("pool.sync_database", json!([])).await.unwrap();
}

/// xapi.md 2.4: whom a session belongs to and where it is.
#[tokio::test]
async fn a_session_tells_its_host() {
    let raw = Raw::new().await;
    let pool = raw.first("pool").await;
    let master = raw.call("pool.get_master", json!([pool])).await.unwrap();
    assert_eq!(raw.call("session.get_this_host", json!([raw.session])).await.unwrap(), master);
}
