//! How the ranks of a job find each other: through the run's folder, on a shared disk or in object storage.
//!
//! ```text
//! meeting/ATTEMPT/rank-000003.json     who the rank is, what it is to train, and where it listens; rank 0 adds a token
//! ```
//! Every rank writes one key of its own, once, and reads those of the others. The attempt is the launcher's: the same on all ranks,
//! another one at each start, so that nothing of an earlier start is taken for a rank of this one. A rank that cannot read the folder
//! does not know the token and is not let in. Ranks that were started with something else are refused before anything else happens.
//!
//! What connects them then is TCP, for runs on processors.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::mesh::Mesh;
use kernels::ranks::tcp::{Limits, Listening};
use kernels::ranks::{Failure, Ranks};
use loader::Store;
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;
use crate::{Error, Message};

/// Between two looks for ranks that have not come yet.
const POLL: Duration = Duration::from_millis(200);
/// Until the first message about those that are missing, and between two.
const FIRST_LOG_AFTER: Duration = Duration::from_secs(5);
const LOG_EVERY: Duration = Duration::from_secs(15);

/// A rank on its way to the others.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its index.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// Which start of the job this is.
    pub attempt: String,
    /// Whether all ranks are on this machine: they need not be reached from elsewhere then.
    pub local: bool,
    /// The mesh that they are to form.
    pub mesh: Mesh,
}

/// What a rank says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Introduction {
    rank: usize,
    ranks: usize,
    mesh: String,
    software: String,
    address: SocketAddr,
    /// Of rank 0: what connections are proved with.
    token: Option<[u8; 32]>,
    recipe: BTreeMap<String, String>,
}

/// Waits for all ranks of the job and connects to them.
///
/// # Errors
/// [`Error::UsedAttempt`] when the attempt was used before; [`Error::Recipe`] when ranks were started with different things, with the
/// differences; [`kernels::Error::Peer`] naming a rank that did not come within [`Limits::meeting`]; those of the store.
pub fn meet(store: &Store, recipe: &Recipe, member: &Member, limits: Limits) -> Result<Arc<dyn Ranks>, Error> {
    let listening = Listening::bind(SocketAddr::new(own_address(member.local), 0))?;
    let mine = introduction(recipe, member, listening.address())?;
    let key = |rank: usize| key(&member.attempt, rank);
    let json = serde_json::to_vec_pretty(&mine).map_err(|error| Error::Internal(error.into()))?;
    if !store.put_new(&key(member.rank), json)? {
        let (attempt, place) = (member.attempt.clone(), store.url().to_owned());
        return Err(Error::UsedAttempt { rank: member.rank, attempt, place });
    }
    let others = wait_for_all(store, member, &mine, key, limits.meeting)?;
    let addresses: Vec<SocketAddr> = others.iter().map(|other| other.address).collect();
    let token = others.first().and_then(|first| first.token);
    let token = token.ok_or_else(|| Error::RunDir(format!("{}/{} holds no token", store.url(), key(0)).into()))?;
    Ok(listening.meet(member.rank, &addresses, &token, limits)?)
}

/// Removes what rank `rank` has left at the meeting of `attempt`, and the run's folder where that leaves it empty: for ranks that met
/// for a moment only, once all have come.
///
/// # Errors
/// Those of the store.
pub fn forget(store: &Store, attempt: &str, rank: usize) -> Result<(), Error> {
    store.delete(&key(attempt, rank))?;
    // One that holds anything, of another rank too, cannot be removed.
    let _ = store.local_path().map(std::fs::remove_dir);
    Ok(())
}

fn key(attempt: &str, rank: usize) -> String {
    format!("meeting/{attempt}/rank-{rank:06}.json")
}

fn introduction(recipe: &Recipe, member: &Member, address: SocketAddr) -> Result<Introduction, Error> {
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(|error| Error::Internal(format!("no random numbers: {error}").into()))?;
    Ok(Introduction {
        rank: member.rank,
        ranks: member.ranks,
        mesh: member.mesh.to_string(),
        software: concat!("sae ", env!("CARGO_PKG_VERSION")).into(),
        address,
        token: (member.rank == 0).then_some(token),
        recipe: recipe.keys(),
    })
}

/// The introductions of all ranks, in their order, once each says the same as `mine`.
fn wait_for_all(
    store: &Store,
    member: &Member,
    mine: &Introduction,
    key: impl Fn(usize) -> String,
    patience: Duration,
) -> Result<Vec<Introduction>, Error> {
    let started = Instant::now();
    let mut speaks = started + FIRST_LOG_AFTER;
    let mut came: Vec<Option<Introduction>> = (0..member.ranks).map(|_| None).collect();
    loop {
        for (rank, came) in came.iter_mut().enumerate().filter(|(_, came)| came.is_none()) {
            *came = match store.get(&key(rank)) {
                Ok(bytes) => Some(parse(&bytes, &store.url_of(&key(rank)))?),
                Err(loader::Error::NotFound { .. }) => None,
                Err(other) => return Err(other.into()),
            };
            if let Some(theirs) = came {
                check_same(mine, theirs)?;
            }
        }
        let missing: Vec<String> =
            came.iter().enumerate().filter(|(_, came)| came.is_none()).map(|(rank, _)| rank.to_string()).collect();
        let Some(first) = missing.first() else { return Ok(came.into_iter().flatten().collect()) };
        if started.elapsed() > patience {
            let reason = format!("has not come to {} within {} s", store.url_of(&key(0)), patience.as_secs());
            return Err(Failure::seen(first.parse().unwrap_or_default(), reason).during("meeting").into());
        }
        if Instant::now() > speaks {
            speaks = Instant::now() + LOG_EVERY;
            let missing = missing.join(", ");
            let left_s = patience.saturating_sub(started.elapsed()).as_secs();
            let Member { ranks, attempt, .. } = member;
            tracing::info!(
                missing,
                ranks,
                left_s,
                attempt,
                "waiting for ranks: each has to be started, with the same run.dir and attempt"
            );
        }
        std::thread::sleep(POLL);
    }
}

fn parse(bytes: &[u8], url: &str) -> Result<Introduction, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text =
            format!("{url} is no introduction of a rank ({error}): ranks of one job run the same version of sae");
        Error::RunDir(Message::of(text, error))
    })
}

/// That two ranks were started with the same things.
fn check_same(mine: &Introduction, theirs: &Introduction) -> Result<(), Error> {
    let facts = |of: &Introduction| {
        let all = [("version", &of.software), ("mesh", &of.mesh), ("ranks", &of.ranks.to_string())];
        let all = all.map(|(name, value)| (name.to_owned(), value.clone()));
        all.into_iter().chain(of.recipe.clone()).collect::<BTreeMap<String, String>>()
    };
    let (mine_facts, their_facts) = (facts(mine), facts(theirs));
    let names = mine_facts.keys().chain(their_facts.keys().filter(|name| !mine_facts.contains_key(*name)));
    let value = |of: &BTreeMap<String, String>, name| of.get(name).map_or("(not set)", String::as_str).to_owned();
    let differing: Vec<String> = names
        .filter(|name| mine_facts.get(*name) != their_facts.get(*name))
        .map(|name| {
            let (a, b) = (value(&mine_facts, name), value(&their_facts, name));
            format!("  {name}: rank {} has {a}, rank {} has {b}", mine.rank, theirs.rank)
        })
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::Recipe(format!(
        "the ranks of a job must be started with the same recipe, mesh and version:\n{}",
        differing.join("\n")
    )))
}

/// The address under which others reach this machine: that of the interface that leads out of it. Nothing is sent to find it.
fn own_address(local: bool) -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if local {
        return loopback;
    }
    let route = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // An address for documentation, which no machine has.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    route.map_or(loopback, |address| address.ip())
}

#[cfg(test)]
mod tests {
    use kernels::ranks::Group;

    use super::*;

    fn recipe(place: &str, features: usize) -> Recipe {
        let text = format!("[data]\ntrain = 'x'\n[sae]\nfeatures = {features}\n[run]\ndir = '{place}'\n");
        toml::from_str(&text).expect("a recipe")
    }

    /// What each rank's meeting gave; `features` are those of its recipe.
    fn meeting(place: &str, attempt: &str, features: &[usize]) -> Vec<Result<Arc<dyn Ranks>, Error>> {
        let mesh = Mesh { data: features.len(), feature: 1 };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = features
                .iter()
                .enumerate()
                .map(|(rank, &features)| {
                    scope.spawn(move || {
                        let store = Store::open(place).expect("a folder");
                        let member =
                            Member { rank, ranks: mesh.ranks(), attempt: attempt.to_owned(), local: true, mesh };
                        let limits = Limits { meeting: Duration::from_secs(20), ..Limits::default() };
                        meet(&store, &recipe(place, features), &member, limits)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
        })
    }

    #[test]
    fn ranks_meet_once_in_an_attempt_and_only_with_their_like() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().to_str().expect("a plain name");
        let ranks: Vec<_> = meeting(place, "one", &[512; 3]).into_iter().map(|rank| rank.expect("they meet")).collect();
        std::thread::scope(|scope| {
            for ranks in &ranks {
                scope.spawn(move || {
                    let mut values = [1.0 + ranks.rank() as f64];
                    Group::of(ranks.clone(), vec![0, 1, 2]).sum_f64(&mut values).expect("they answer");
                    assert_eq!(values, [6.0]);
                });
            }
        });
        for again in meeting(place, "one", &[512; 3]) {
            let error = again.expect_err("the attempt is used").to_string();
            assert!(error.contains("give every start of a job an attempt of its own"), "{error}");
        }
        let differ = meeting(place, "two", &[512, 640]);
        for error in differ.into_iter().map(|rank| rank.expect_err("other features").to_string()) {
            assert!(error.contains("sae.features: rank") && error.contains("640"), "{error}");
        }
    }
}
