//! Disk streams of the client, held to xapi.md 6 by the simulator: the task decides, whatever the answer looked like.

use lamina::sim::disk::pattern;
use lamina::xapi::error::StreamProblem;

use super::*;

const MIB: usize = 1 << 20;
const PUT: &str = "PUT /import_raw_vdi";
const GET: &str = "GET /export_raw_vdi";

/// A detached disk of 6 MiB in a repository, and its uuid.
async fn made(sim: &Sim, client: &Client, sr: &str) -> (Ref, String) {
    let found = sim.pool.db().all("SR").find(|(_, row)| row["name_label"] == sr).map(|(r, _)| r.clone());
    let new = NewVdi { sr: &found.expect("the repository"), name: "config", description: "", size: 6 << 20 };
    let task = client.start("op").vdi_create(&new).await.unwrap();
    let disk = crate::common::eventually("the disk is made", async || {
        let task: Task = client.read().get_record(&task).await.unwrap();
        (task.status == TaskStatus::Success).then(|| Ref(lamina::xapi::wire::task_result(&task.result)))
    })
    .await;
    let uuid = sim.pool.db().field("VDI", &disk, "uuid").unwrap().as_str().unwrap().to_owned();
    client.write().task_destroy(&task).await.unwrap();
    (disk, uuid)
}

fn content() -> Vec<u8> {
    (0..3).flat_map(|block| pattern(7, block)).collect()
}

fn on_disk(sim: &Sim, uuid: &str) -> Vec<u8> {
    sim.pool.world.disks().read_at(uuid, 0, 6 * MIB).unwrap()
}

fn strike(sim: &Sim, method: &str, effect: Effect) {
    sim.pool.faults.add(Fault { target: Target::Method(method.into()), effect, times: Some(1) });
}

fn transfers(sim: &Sim) -> usize {
    sim.pool.db().all("task").filter(|(_, row)| row["name_label"] == "Lamina config disk").count()
}

fn problem<T: std::fmt::Debug>(result: Result<T, Error>) -> StreamProblem {
    match result {
        Err(Error::Stream { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_go_in_and_come_out_whole() {
    let sim = pool().await;
    let client = client(&sim);
    let (disk, uuid) = made(&sim, &client, "Shared storage").await;
    sim.pool.clock.hold("import_raw_vdi");
    let moving = tokio::spawn({
        let (client, disk) = (client.clone(), disk.clone());
        async move { client.start("0123456789ab").import_raw_vdi(&disk, &content()).await }
    });
    let tagged = crate::common::eventually("the task of the transfer", async || {
        let db = sim.pool.db();
        db.all("task")
            .find(|(_, row)| row["other_config"]["http:lamina-op"] == "0123456789ab")
            .map(|(_, row)| row["name_label"].clone())
    });
    assert_eq!(tagged.await, "Lamina config disk", "found again by its tag");
    sim.pool.clock.unhold("import_raw_vdi");
    moving.await.unwrap().unwrap();
    assert_eq!(on_disk(&sim, &uuid), content());
    assert_eq!(client.start("op").export_raw_vdi(&disk, 6 * MIB).await.unwrap(), content());
    assert_eq!(transfers(&sim), 0, "a task whose end is known goes");
    // Fewer bytes than the disk has leave the rest of it alone.
    client.start("op").import_raw_vdi(&disk, &vec![0; 2 * MIB]).await.unwrap();
    assert_eq!(on_disk(&sim, &uuid), [vec![0; 2 * MIB], content()[2 * MIB..].to_vec()].concat());
}

/// Only the body of the last request is a disk's: a host that is not trusted gets nothing.
#[tokio::test]
async fn a_redirect_is_followed_to_a_host_that_is_trusted() {
    let sim = pool().await;
    let client = client(&sim);
    let (disk, uuid) = made(&sim, &client, "Local storage on host2").await;
    client.start("op").import_raw_vdi(&disk, &content()).await.unwrap();
    assert_eq!(on_disk(&sim, &uuid), content());
    assert_eq!(client.start("op").export_raw_vdi(&disk, 6 * MIB).await.unwrap(), content());

    let alone = Client::new(options(vec![sim.urls()[0].clone()], Tls::Fingerprints(vec![pin(&sim, 0)]))).unwrap();
    let sent = sim.pool.log.counts().get(PUT).copied();
    let refused = alone.start("op").import_raw_vdi(&disk, &vec![1; 6 * MIB]).await.unwrap_err();
    let seen = sim.hosts[1].fingerprint.replace(':', "").to_lowercase();
    match refused {
        Error::Tls { endpoint, problem } => {
            assert_eq!((endpoint, problem), (sim.urls()[1].clone(), TlsProblem::Pin { seen }))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((sim.pool.log.counts().get(PUT).copied(), on_disk(&sim, &uuid)), (sent, content()));
    assert_eq!(transfers(&sim), 0);
}

#[tokio::test]
async fn the_task_decides_and_not_the_status_line() {
    let sim = pool().await;
    let client = client(&sim);
    let (disk, uuid) = made(&sim, &client, "Shared storage").await;
    for code in ["SR_BACKEND_FAILURE_453", "VDI_IN_USE"] {
        strike(&sim, PUT, Effect::Refuse(Failure::new(code, ["x"])));
        let refused = client.start("op").import_raw_vdi(&disk, &content()).await.unwrap_err();
        assert!(refused.is_code(code), "{refused:?}");
        strike(&sim, GET, Effect::Refuse(Failure::new(code, ["x"])));
        let refused = client.start("op").export_raw_vdi(&disk, 6 * MIB).await.unwrap_err();
        assert!(refused.is_code(code), "a second answer inside the first: {refused:?}");
    }
    assert_eq!(on_disk(&sim, &uuid), vec![0; 6 * MIB], "nothing went in");
    let gone = Ref("OpaqueRef:nobody".to_owned());
    assert!(matches!(client.start("op").import_raw_vdi(&gone, b"x").await, Err(Error::Status { status: 500, .. })));
    // What the pool says of a stream that broke is the truth about it; what it cannot say is a lost one.
    for (method, effect) in [
        (PUT, Effect::CutBody(50)),
        (PUT, Effect::Drop),
        (GET, Effect::CutBody(50)),
        (GET, Effect::TruncateReply),
        (GET, Effect::Drop),
    ] {
        strike(&sim, method, effect.clone());
        let result = if method == PUT {
            client.start("op").import_raw_vdi(&disk, &content()).await
        } else {
            client.start("op").export_raw_vdi(&disk, 6 * MIB).await.map(drop)
        };
        match (&effect, result) {
            (Effect::Drop, Err(Error::Stream { problem: StreamProblem::Cut, .. })) => {}
            (_, Err(error)) if error.is_code("VDI_IO_ERROR") => {}
            (_, other) => panic!("{method} {effect:?}: {other:?}"),
        }
    }
    assert_eq!(transfers(&sim), 0, "no task is left behind");
    // And after all that it is simply done again.
    client.start("op").import_raw_vdi(&disk, &content()).await.unwrap();
    assert_eq!(on_disk(&sim, &uuid), content());
}

#[tokio::test]
async fn a_transfer_is_bounded_in_size_and_time() {
    let sim = pool().await;
    let mut options = options(sim.urls(), pins(&sim));
    options.timeouts.transfer = Duration::from_millis(300);
    let (patient, hasty) = (client(&sim), Client::new(options).unwrap());
    let (disk, _) = made(&sim, &patient, "Shared storage").await;
    let out = async |size| problem(patient.start("op").export_raw_vdi(&disk, size).await);
    assert_eq!(
        out(6 * MIB + 1).await,
        StreamProblem::Length { wanted: 6 * MIB + 1 },
        "cut off, it would look like a good one"
    );
    assert_eq!(out((128 << 20) + 1).await, StreamProblem::TooLarge((128 << 20) + 1));
    sim.pool.clock.hold("export_raw_vdi");
    assert_eq!(problem(hasty.start("op").export_raw_vdi(&disk, 6 * MIB).await), StreamProblem::TimedOut);
    sim.pool.clock.unhold("export_raw_vdi");
    crate::common::eventually("the task goes when it ends", async || (transfers(&sim) == 0).then_some(())).await;
}

#[tokio::test]
async fn who_does_not_lead_moves_nothing_into_a_disk() {
    let sim = pool().await;
    let leads = Arc::new(AtomicBool::new(true));
    let asked = leads.clone();
    let permit = Arc::new(move || asked.load(Ordering::SeqCst));
    let client = Client::new(Options { permit, ..options(sim.urls(), pins(&sim)) }).unwrap();
    let (disk, uuid) = made(&sim, &client, "Shared storage").await;
    leads.store(false, Ordering::SeqCst);
    let number = sim.pool.log.number();
    assert!(matches!(client.start("op").import_raw_vdi(&disk, &content()).await, Err(Error::NotLeading)));
    assert_eq!((sim.pool.log.number(), on_disk(&sim, &uuid)), (number, vec![0; 6 * MIB]));
}

#[tokio::test]
async fn no_session_is_told_of_a_transfer() {
    let sim = pool().await;
    let (client, told) = overheard(&sim);
    let (disk, _) = made(&sim, &client, "Local storage on host2").await;
    client.start("op").import_raw_vdi(&disk, &content()).await.unwrap();
    let echo = Failure::new("INTERNAL_ERROR", sessions(&sim).iter().map(Ref::to_string));
    let mut errors = Vec::new();
    for effect in [Effect::Refuse(echo), Effect::Drop, Effect::CutBody(10)] {
        strike(&sim, PUT, effect);
        let error = client.start("op").import_raw_vdi(&disk, &content()).await.unwrap_err();
        errors.push(format!("{error} {error:?}"));
    }
    let lines = told.lock().unwrap().join("\n");
    let object = format!("object: Some({:?})", disk.as_str());
    assert!(lines.contains(PUT) && lines.contains("op: Some(\"op\")") && lines.contains(&object), "{lines}");
    for text in [lines, errors.join("\n")] {
        assert!(!sessions(&sim).iter().any(|session| text.contains(session.as_str())), "{text}");
    }
}

/// A control domain has few processors. Whoever waits for one waits elsewhere.
#[tokio::test]
async fn a_third_stream_is_refused_before_anything_is_made_for_it() {
    let sim = pool().await;
    let client = client(&sim);
    let mut disks = Vec::new();
    for _ in 0..3 {
        disks.push(made(&sim, &client, "Shared storage").await.0);
    }
    let third = disks.remove(0);
    sim.pool.clock.hold("import_raw_vdi");
    let moving: Vec<_> = disks
        .into_iter()
        .map(|disk| {
            let client = client.clone();
            tokio::spawn(async move { client.start("op").import_raw_vdi(&disk, &content()).await })
        })
        .collect();
    crate::common::eventually("two streams", async || (sim.pool.clock.waiting().len() == 2).then_some(())).await;
    let before = sim.pool.log.entries().len();
    assert_eq!(problem(client.start("op").import_raw_vdi(&third, &content()).await), StreamProblem::Busy);
    assert_eq!((transfers(&sim), sim.pool.log.entries().len()), (2, before));
    sim.pool.clock.unhold("import_raw_vdi");
    for moved in moving {
        moved.await.unwrap().unwrap();
    }
    client.start("op").import_raw_vdi(&third, &content()).await.unwrap();
}
