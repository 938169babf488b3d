//! A layer without hands: its steps, the files that they need, and the machine that runs them with the guest's own service.

use std::sync::Arc;

use lamina::demo::person::{Deed, Image, person_at};
use lamina::sim::guest::Program;
use lamina_guest::deeds::Ended;
use lamina_guest::memory::{self, Reply};
use serde_json::{Value, json};

use super::rig::Rig;

/// In one of the files.
pub const SECRET: &str = "0pen-sesame";

/// An image with tools, in which `Setup.cmd` ends with this code.
pub fn image(code: i32) -> Image {
    let installers = move |_: &mut memory::State, deed: &memory::Deed| match deed {
        memory::Deed::Run(job) if job.args.contains("Setup.cmd") => Reply::Ended(Ended::Code(code)),
        _any_other => Reply::Usual,
    };
    Image { tools: true, installers: Arc::new(installers) }
}

/// The service runs the steps, and a person shuts down for finalize.
pub fn served() -> Program {
    person_at(image(0), vec![vec![Deed::Serve, Deed::Finalize]])
}

/// Part of a spec.
pub fn two_steps() -> Value {
    json!({"steps": [
        {"name": "tools", "file": "Setup.cmd", "files": [
            {"name": "Setup.cmd", "configMapKeyRef": {"name": "tools", "key": "Setup.cmd"}},
            {"name": "answers.ini", "secretKeyRef": {"name": "answers", "key": "answers.ini"}},
        ]},
        {"name": "agent", "command": "rem done"},
    ]})
}

/// What the steps need, in the namespace.
pub async fn files(rig: &Rig) {
    rig.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tools}}\ndata: {{Setup.cmd: rem set up}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: answers}}\nstringData: {{answers.ini: {SECRET}}}\n"
    ))
    .await;
}
