use std::thread::{self, JoinHandle};

use artifact::RunDir;

use super::*;
use crate::device::DeviceSpec;
use crate::error::{exit_code, report};
use crate::layout::Layout;

const PATIENCE: Duration = Duration::from_secs(4);

/// What a process of `size` is given that works in `dir`.
fn context(dir: &Path, rank: usize, size: usize) -> Context {
    let mut ctx = Context::detached(RunDir::create(dir).unwrap(), 1, DeviceSpec::Cpu);
    let master = ("here".to_owned(), 1);
    ctx.layout = Layout { rank, size, master, patience: PATIENCE, ..Layout::default() };
    ctx
}

type Work = fn(&mut Context, &Team) -> anyhow::Result<String>;

fn start(dir: &Path, rank: usize, size: usize, work: Work) -> JoinHandle<anyhow::Result<String>> {
    let mut ctx = context(dir, rank, size);
    thread::spawn(move || together(&mut ctx, |ctx, team| work(ctx, team.unwrap())))
}

/// What comes of `works`, of one process each.
fn all(dir: &Path, works: &[Work]) -> Vec<anyhow::Result<String>> {
    let started: Vec<_> =
        works.iter().enumerate().map(|(rank, work)| start(dir, rank, works.len(), *work)).collect();
    started.into_iter().map(|one| one.join().unwrap()).collect()
}

fn message(result: &anyhow::Result<String>) -> String {
    result.as_ref().unwrap_err().to_string()
}

/// Waits for an end that does not come by itself.
fn linger(_: &mut Context, team: &Team) -> anyhow::Result<String> {
    team.wait_for("nothing")?;
    Ok(String::new())
}

#[test]
fn a_process_on_its_own_has_no_team() {
    let dir = tempfile::tempdir().unwrap();
    let mut ctx = context(dir.path(), 0, 1);
    let alone = together(&mut ctx, |_, team| Ok(team.is_none())).unwrap();
    assert!(alone && !ctx.run_dir.ranks_dir().exists());
}

#[test]
fn each_piece_is_claimed_once_and_parts_arrive() {
    fn work(ctx: &mut Context, team: &Team) -> anyhow::Result<String> {
        ctx.start()?;
        let mut own = String::new();
        for piece in 0..60 {
            if team.claim(&piece.to_string())? {
                team.put(&piece.to_string(), format!("{piece} ").as_bytes())?;
                own.push('x');
            }
        }
        if !team.is_first() {
            team.put(&format!("counted-{}", ctx.layout.rank), own.as_bytes())?;
            return Ok(own);
        }
        for rank in 1..team.size() {
            team.wait_for(&format!("counted-{rank}"))?;
            own += &String::from_utf8(team.take(&format!("counted-{rank}"))?.unwrap())?;
        }
        let mut parts = String::new();
        for piece in 0..60 {
            let part = team.take(&piece.to_string())?.unwrap();
            parts += &String::from_utf8(part)?;
            assert!(team.claimant(&piece.to_string()).is_some());
            assert!(team.take(&piece.to_string())?.is_none());
        }
        assert_eq!(team.claimant("60"), None);
        assert_eq!(own.len(), 60);
        Ok(parts)
    }
    let dir = tempfile::tempdir().unwrap();
    let ended = all(dir.path(), &[work, work, work]);
    let expected = (0..60).fold(String::new(), |all, piece| format!("{all}{piece} "));
    assert_eq!(ended[0].as_ref().unwrap(), &expected);
    assert!(ended.iter().all(Result::is_ok));
    // Nothing is left of it.
    assert!(!dir.path().join(".ranks").exists());
}

#[test]
fn a_process_that_fails_ends_the_others_which_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let ended = all(dir.path(), &[linger, linger, |_, _| Err(anyhow::anyhow!("no more paper"))]);
    assert_eq!(message(&ended[0]), "rank 2 failed: no more paper");
    // By way of the first.
    assert_eq!(message(&ended[1]), "rank 2 failed: no more paper");
    assert_eq!(message(&ended[2]), "no more paper");
    let said = report(ended[0].as_ref().unwrap_err());
    assert!(said.contains("hint: its own output says why; start the job again"), "{said}");
}

#[test]
fn a_process_that_panics_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), 0, 2, linger);
    let other = start(dir.path(), 1, 2, |_, _| panic!("a defect"));
    assert_eq!(message(&first.join().unwrap()), "rank 1 failed: internal error");
    assert!(other.join().is_err());
}

#[test]
fn a_signal_to_one_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let ended = all(
        dir.path(),
        &[linger, linger, |ctx, team| {
            ctx.interrupt.request(Signal::Term);
            linger(ctx, team)
        }],
    );
    for end in ended {
        assert_eq!(exit_code(&end.unwrap_err()), 143);
    }
}

#[test]
fn a_process_that_falls_silent_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), 0, 2, linger);
    let mut ctx = context(dir.path(), 1, 2);
    let mut team = Team::join(&mut ctx).unwrap();
    team.pulse.stop();
    let since = Instant::now();
    assert_eq!(message(&first.join().unwrap()), "rank 1 gives no sign of life");
    assert!(since.elapsed() >= PATIENCE, "it was given {:?}", since.elapsed());
}

#[test]
fn one_that_does_not_come_is_named_and_one_that_nobody_waits_for_says_where_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), 0, 3, linger);
    let other = start(dir.path(), 1, 3, linger);
    // Of another job: the two do not meet.
    let strange = start(dir.path(), 1, 2, linger);
    assert_eq!(message(&first.join().unwrap()), "rank 2 did not come within 4 seconds");
    for lonely in [other, strange] {
        let said = message(&lonely.join().unwrap());
        assert!(said.starts_with("rank 0 is not to be found in /"), "{said}");
    }
}

/// A killed job's folder is there, open or closed, with its cards; those who come find the new one.
#[test]
fn what_a_killed_job_left_is_not_taken_for_this_one_and_goes() {
    fn work(ctx: &mut Context, team: &Team) -> anyhow::Result<String> {
        ctx.start()?;
        assert!(team.claim(&format!("own-{}", ctx.layout.rank))?);
        Ok(String::new())
    }
    let dir = tempfile::tempdir().unwrap();
    let mut old = context(dir.path(), 0, 2);
    let ranks = old.run_dir.ranks_dir();
    let joined = thread::spawn({
        let mut ctx = context(dir.path(), 1, 2);
        move || Team::join(&mut ctx).unwrap()
    });
    let first = Team::join(&mut old).unwrap();
    let second = joined.join().unwrap();
    assert!(first.claim("own-0").unwrap());
    // As if both were killed: they neither end nor give signs.
    let closed = first.folder.clone();
    std::mem::forget((first, second));
    let open = ranks.join("0123456789abcdef");
    fs::create_dir(&open).unwrap();
    fs::copy(closed.join("job"), open.join("job")).unwrap();
    let other = start(dir.path(), 1, 2, work);
    sleep(Duration::from_millis(200));
    let first = start(dir.path(), 0, 2, work);
    for one in [first, other] {
        one.join().unwrap().unwrap();
    }
    assert!(!ranks.exists());
}

/// A process on its own takes away what killed ones left.
#[test]
fn a_process_on_its_own_removes_the_meeting_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut ctx = context(dir.path(), 0, 1);
    fs::create_dir_all(ctx.run_dir.ranks_dir().join("old")).unwrap();
    together(&mut ctx, |ctx, _| ctx.start()).unwrap();
    assert!(!ctx.run_dir.ranks_dir().exists());
}

#[test]
fn only_a_process_of_this_machine_is_known_to_be_dead() {
    let own: Card = serde_json::from_value(card(std::process::id(), true)).unwrap();
    assert!(!own.is_dead());
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let (here, elsewhere): (Card, Card) = (
        serde_json::from_value(card(child.id(), true)).unwrap(),
        serde_json::from_value(card(child.id(), false)).unwrap(),
    );
    // A zombie until somebody asks, then nothing.
    sleep(Duration::from_millis(300));
    assert!(here.is_dead() && !elsewhere.is_dead());
    child.wait().unwrap();
    assert!(here.is_dead() && !elsewhere.is_dead());
}

fn card(pid: u32, here: bool) -> serde_json::Value {
    let machine = card::machine().unwrap();
    let machine = if here { machine } else { format!("{machine} elsewhere") };
    serde_json::json!({"name": "x", "pid": pid, "machine": machine})
}
