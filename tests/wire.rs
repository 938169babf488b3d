//! The simulator's wire, spoken by hand: requests and replies as bytes and JSON, without the controller and without its client.
//!
//! Each test names the section of `xapi.md` that it holds the simulator to, or says that it is about the instrument itself: faults, holds, world
//! files and the panel, which no real pool has.

mod calls;
mod events;
mod faults;
mod http;
mod model;
mod records;
mod sdk;
mod sessions;
mod streams;
mod tasks;
mod unsimulated;

use lamina::sim::serve::{Options, Sim};
use serde_json::{Value, json};

use crate::common::hands::http;

/// A failure as a list: code, then parameters.
pub type Outcome = Result<Value, Vec<String>>;

/// A pool of its own for each test, and a client with a session.
pub struct Raw {
    pub sim: Sim,
    pub http: reqwest::Client,
    pub session: String,
}

impl Raw {
    pub async fn new() -> Self {
        let sim = Sim::start(Options::default()).await.unwrap();
        let http = http(&sim);
        let mut raw = Self { sim, http, session: String::new() };
        raw.session = raw.login("root", "secret").await.unwrap();
        raw
    }

    pub fn url(&self) -> String {
        self.sim.urls().remove(0)
    }

    pub async fn login(&self, user: &str, password: &str) -> Result<String, Vec<String>> {
        let session = self.bare("session.login_with_password", json!([user, password, "1.0", "tests"])).await?;
        Ok(session.as_str().unwrap().to_owned())
    }

    /// A call with the session in front.
    pub async fn call(&self, method: &str, params: Value) -> Outcome {
        self.bare(method, self.with_session(params)).await
    }

    pub fn with_session(&self, params: Value) -> Value {
        std::iter::once(json!(self.session)).chain(params.as_array().unwrap().clone()).collect()
    }

    /// A call with exactly these parameters.
    pub async fn bare(&self, method: &str, params: Value) -> Outcome {
        self.send(method, params).await.unwrap()
    }

    /// As [`Raw::bare`], where the connection may die.
    pub async fn send(&self, method: &str, params: Value) -> Result<Outcome, reqwest::Error> {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let reply = self.http.post(format!("{}/jsonrpc", self.url())).json(&request).send().await?;
        assert_eq!(reply.status(), 200);
        let reply: Value = reply.json().await?;
        assert_eq!((&reply["jsonrpc"], &reply["id"]), (&json!("2.0"), &json!(7)));
        Ok(match reply.get("error") {
            None => Ok(reply["result"].clone()),
            Some(error) => {
                assert_eq!(error["code"], 1);
                let data = error["data"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned());
                Err(std::iter::once(error["message"].as_str().unwrap().to_owned()).chain(data).collect())
            }
        })
    }

    /// The only row of a class that has one, such as `pool`.
    pub async fn first(&self, class: &str) -> String {
        let all = self.call(&format!("{class}.get_all"), json!([])).await.unwrap();
        all[0].as_str().unwrap().to_owned()
    }

    /// A VM row without any machinery behind it.
    pub fn row(&self, class: &str, name: &str) -> String {
        self.sim.pool.db().create(class, [("name_label", json!(name))]).to_string()
    }
}

/// A failure's expected form.
pub fn failure<const N: usize>(list: [&str; N]) -> Outcome {
    Err(list.map(str::to_owned).to_vec())
}
