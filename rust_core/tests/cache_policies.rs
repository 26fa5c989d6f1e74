//! Every policy against a short, obvious model of it, and laws that hold for all of them.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::VecDeque;

use proptest::prelude::*;
use tiermem_core::ErrorKind;
use tiermem_core::cache::{
    Access, Auto, Clock, Lfu, Lookahead, Lru, METADATA_BYTES_PER_ROW_MAX, NEVER, Policy, PolicyKind, Random, Replay,
    RowCache, S3Fifo, Sieve, WINDOW_BATCHES_MAX, replay,
};
use tiermem_core::rng::draw;

/// Gives the key that has to leave for this one; `None` inside if nobody has to; `None` outside on a hit.
type Model = Box<dyn FnMut(u64) -> Option<Option<u64>>>;

fn lru(capacity: usize) -> Model {
    let mut order: Vec<u64> = Vec::new();
    Box::new(move |key| {
        if let Some(place) = order.iter().position(|&other| other == key) {
            order.remove(place);
            order.push(key);
            return None;
        }
        let evicted = (order.len() == capacity).then(|| order.remove(0));
        order.push(key);
        Some(evicted)
    })
}

fn lfu(capacity: usize) -> Model {
    let mut rows: Vec<(u64, u64, u64)> = Vec::new(); // uses, time of the last use, key
    let mut time = 0;
    Box::new(move |key| {
        time += 1;
        if let Some(row) = rows.iter_mut().find(|row| row.2 == key) {
            *row = ((row.0 + 1).min(255), time, key);
            return None;
        }
        let evicted = (rows.len() == capacity).then(|| {
            let least = *rows.iter().min().unwrap();
            rows.retain(|row| *row != least);
            least.2
        });
        rows.push((0, time, key));
        Some(evicted)
    })
}

/// The hand that goes round is a queue whose used rows go back to its end.
fn clock(capacity: usize) -> Model {
    let mut queue: VecDeque<(u64, bool)> = VecDeque::new();
    Box::new(move |key| {
        if let Some(row) = queue.iter_mut().find(|row| row.0 == key) {
            row.1 = true;
            return None;
        }
        let mut evicted = None;
        while queue.len() == capacity {
            let (oldest, used) = queue.pop_front().unwrap();
            if used {
                queue.push_back((oldest, false));
            } else {
                evicted = Some(oldest);
            }
        }
        queue.push_back((key, false));
        Some(evicted)
    })
}

fn s3fifo(capacity: usize) -> Model {
    let small_max = (capacity / 10).max(1);
    let ghost_max = capacity - small_max;
    let mut small: VecDeque<(u64, u8)> = VecDeque::new(); // key, uses
    let mut main = small.clone();
    let mut ghosts: Vec<(u64, usize)> = Vec::new(); // key, number of its insertion
    let mut insertions = 0;
    Box::new(move |key| {
        if let Some(row) = small.iter_mut().chain(&mut main).find(|row| row.0 == key) {
            row.1 = (row.1 + 1).min(3);
            return None;
        }
        let mut evicted = None;
        while small.len() + main.len() == capacity {
            if small.len() >= small_max || main.is_empty() {
                let (oldest, uses) = small.pop_front().unwrap();
                if uses >= 2 {
                    main.push_back((oldest, 0));
                } else {
                    insertions += 1;
                    ghosts.push((oldest, insertions));
                    evicted = Some(oldest);
                }
            } else {
                let (oldest, uses) = main.pop_front().unwrap();
                if uses > 0 {
                    main.push_back((oldest, uses - 1));
                } else {
                    evicted = Some(oldest);
                }
            }
        }
        ghosts.retain(|ghost| insertions - ghost.1 < ghost_max);
        let queue = if ghosts.iter().any(|ghost| ghost.0 == key) { &mut main } else { &mut small };
        queue.push_back((key, 0));
        ghosts.retain(|ghost| ghost.0 != key);
        Some(evicted)
    })
}

fn sieve(capacity: usize) -> Model {
    let mut rows: Vec<(u64, bool)> = Vec::new(); // in order of arrival
    let mut hand = 0;
    Box::new(move |key| {
        if let Some(row) = rows.iter_mut().find(|row| row.0 == key) {
            row.1 = true;
            return None;
        }
        let evicted = (rows.len() == capacity).then(|| {
            loop {
                if hand == rows.len() {
                    hand = 0;
                }
                if !rows[hand].1 {
                    return rows.remove(hand).0;
                }
                rows[hand].1 = false;
                hand += 1;
            }
        });
        rows.push((key, false));
        // The hand that stood behind the newest row begins again at the oldest.
        if evicted.is_some() && hand == rows.len() - 1 {
            hand = 0;
        }
        Some(evicted)
    })
}

fn agree<P: Policy>(
    capacity: usize,
    policy: P,
    mut model: Model,
    keys: &[u64],
    exact_order: bool,
) -> Result<(), TestCaseError> {
    let mut cache = RowCache::new(capacity, policy).unwrap();
    for &key in keys {
        let expected = model(key);
        match cache.access(key) {
            Access::Hit { .. } => prop_assert_eq!(expected, None),
            Access::Miss { evicted, .. } => prop_assert_eq!(expected, Some(evicted)),
        }
        prop_assert!(cache.contains(key) && cache.len() <= capacity);
    }
    let mut slots = cache.policy().coldest_first();
    if exact_order {
        // Keys that never came before push the others out in the order that was foretold.
        let foretold: Vec<u64> = slots.iter().map(|&slot| cache.key(slot)).collect();
        for (fresh, key) in (1_000_000..).zip(&foretold).take(capacity * usize::from(cache.len() == capacity)) {
            match cache.access(fresh) {
                Access::Miss { evicted, .. } => prop_assert_eq!(evicted, Some(*key)),
                Access::Hit { .. } => prop_assert!(false, "a fresh key"),
            }
        }
        return Ok(());
    }
    slots.sort_unstable();
    prop_assert_eq!(slots, (0..cache.len() as u32).collect::<Vec<_>>(), "the order names every slot once");
    Ok(())
}

/// Positions of the next access to the same key.
fn next_uses(keys: &[u64]) -> Vec<u32> {
    (0..keys.len())
        .map(|at| keys[at + 1..].iter().position(|&key| key == keys[at]).map_or(NEVER, |gap| (at + 1 + gap) as u32))
        .collect()
}

fn hits(policy: PolicyKind, rows: usize, keys: &[u64], batch: usize) -> Vec<bool> {
    let ends: Vec<usize> = (0..keys.len()).step_by(batch).map(|start| (start + batch).min(keys.len())).collect();
    let mut hits = Vec::new();
    let config = Replay { policy, rows, window_batches: WINDOW_BATCHES_MAX - 1, seed: 3 };
    replay(&config, keys, &ends, &next_uses(keys), |_, hit| hits.push(hit)).unwrap();
    hits
}

/// Skewed keys, so that there are hits at every size.
fn streams() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec((0u64..40, 0u64..40), 1..250)
        .prop_map(|pairs| pairs.into_iter().map(|(a, b)| a.min(b)).collect())
}

proptest! {
    #[test]
    fn lru_is_its_model(keys in streams(), capacity in 1usize..25) {
        agree(capacity, Lru::new(capacity), lru(capacity), &keys, true)?;
    }

    #[test]
    fn lfu_is_its_model(keys in streams(), capacity in 1usize..25) {
        agree(capacity, Lfu::new(capacity), lfu(capacity), &keys, false)?;
    }

    #[test]
    fn clock_is_its_model(keys in streams(), capacity in 1usize..25) {
        agree(capacity, Clock::new(capacity), clock(capacity), &keys, false)?;
    }

    #[test]
    fn s3fifo_is_its_model(keys in streams(), capacity in 1usize..25) {
        agree(capacity, S3Fifo::new(capacity), s3fifo(capacity), &keys, false)?;
    }

    #[test]
    fn sieve_is_its_model(keys in streams(), capacity in 1usize..25) {
        agree(capacity, Sieve::new(capacity), sieve(capacity), &keys, false)?;
    }

    /// MIN against a search for the farthest next use, and above every policy that knows less.
    #[test]
    fn min_is_its_model_and_the_ceiling(keys in streams(), capacity in 1usize..25) {
        let mut cached: Vec<u64> = Vec::new();
        let mut expected = Vec::new();
        for (at, &key) in keys.iter().enumerate() {
            expected.push(cached.contains(&key));
            if !cached.contains(&key) {
                if cached.len() == capacity {
                    let next = |key: &u64| keys[at..].iter().position(|other| other == key).unwrap_or(usize::MAX);
                    let farthest = *cached.iter().max_by_key(|key| next(key)).unwrap();
                    cached.retain(|&other| other != farthest);
                }
                cached.push(key);
            }
        }
        let count = |hits: &[bool]| hits.iter().filter(|&&hit| hit).count();
        let min = hits(PolicyKind::Min, capacity, &keys, 1);
        // Rows that are never used again may leave in any order, which changes no hit.
        prop_assert_eq!(&min, &expected);
        for (policy, _) in PolicyKind::ALL {
            prop_assert!(count(&hits(policy, capacity, &keys, 1)) <= count(&min), "{}", policy);
        }
    }

    /// A row that is kept by lru is kept by a larger lru (the stack property).
    #[test]
    fn a_larger_lru_hits_wherever_a_smaller_one_does(keys in streams(), capacity in 1usize..24) {
        let smaller = hits(PolicyKind::Lru, capacity, &keys, 1);
        let larger = hits(PolicyKind::Lru, capacity + 1, &keys, 1);
        prop_assert!(smaller.iter().zip(&larger).all(|(&small, &large)| !small || large));
    }

    /// With all accesses announced one by one, lookahead is MIN.
    #[test]
    fn lookahead_that_sees_everything_is_min(keys in streams(), capacity in 1usize..25) {
        let count = |policy| hits(policy, capacity, &keys, 1).iter().filter(|&&hit| hit).count();
        prop_assert_eq!(count(PolicyKind::Lookahead), count(PolicyKind::Min));
    }

    /// No row that stays is used later than the row that leaves, as far as the announced batches tell; whether or
    /// not batches ask for what they announced.
    #[test]
    fn lookahead_evicts_the_farthest_announced_use(
        batches in prop::collection::vec((prop::collection::vec(0u64..30, 0..12), any::<bool>()), 1..30),
        capacity in 1usize..12,
        window in 0usize..8,
    ) {
        let mut cache = RowCache::new(capacity, Lookahead::new(capacity)).unwrap();
        let mut cached: Vec<u64> = Vec::new();
        let announced = |number: usize| batches.get(number).map_or(&[][..], |batch| &batch.0[..]);
        for number in 0..window.min(batches.len()) {
            cache.announce(announced(number)).unwrap();
        }
        for (number, (keys, keeps_its_word)) in batches.iter().enumerate() {
            if number + window < batches.len() {
                cache.announce(announced(number + window)).unwrap();
            }
            cache.begin_batch();
            let mut left = announced(number).to_vec();
            let asked: Vec<u64> = if *keeps_its_word { keys.clone() } else { keys.iter().map(|key| key + 5).collect() };
            for key in asked {
                let access = cache.access(key);
                prop_assert_eq!(access.is_hit(), cached.contains(&key));
                // What is known while the victim is chosen: the key at hand is not among the candidates.
                let next_use = |key: u64| {
                    let ahead = (number + 1)..=(number + window);
                    let now = left.contains(&key).then_some(number);
                    now.or_else(|| ahead.into_iter().find(|&batch| announced(batch).contains(&key))).unwrap_or(usize::MAX)
                };
                if let Access::Miss { evicted, .. } = access {
                    if let Some(victim) = evicted {
                        cached.retain(|&other| other != victim);
                        prop_assert!(cached.iter().all(|&other| next_use(other) <= next_use(victim)));
                    }
                    cached.push(key);
                }
                left.retain(|&other| other != key);
            }
        }
    }

    /// Auto and random keep the bookkeeping of a cache, whatever they choose.
    #[test]
    fn auto_and_random_keep_count(keys in prop::collection::vec(0u64..4_000, 1..400), capacity in 1usize..50) {
        fn check<P: Policy>(capacity: usize, policy: P, keys: &[u64]) -> Result<(), TestCaseError> {
            let mut cache = RowCache::new(capacity, policy).unwrap();
            let mut cached = std::collections::HashSet::new();
            for &key in keys {
                match cache.access(key) {
                    Access::Hit { .. } => prop_assert!(cached.contains(&key)),
                    Access::Miss { evicted, .. } => {
                        prop_assert_eq!(evicted.is_some(), cached.len() == capacity);
                        prop_assert!(evicted.is_none_or(|victim| cached.remove(&victim)));
                        prop_assert!(cached.insert(key));
                    }
                }
            }
            Ok(())
        }
        check(capacity, Auto::new(capacity), &keys)?;
        check(capacity, Random::new(capacity, 9), &keys)?;
    }
}

/// Counts stop at 255: rows that were used more often compete by recency.
#[test]
fn lfu_counts_stop_and_do_not_wrap() {
    let mut cache = RowCache::new(2, Lfu::new(2)).unwrap();
    for _ in 0..400 {
        cache.access(1);
    }
    for _ in 0..10 {
        cache.access(2);
    }
    assert_eq!(cache.access(3), Access::Miss { slot: 1, evicted: Some(2) });
}

/// The window is as long as it was said to be, over many more batches than the ring of lists has places: a batch of
/// one access, and a cache that would be MIN if it saw one batch more.
#[test]
fn lookahead_sees_its_window_and_no_further() {
    let keys: Vec<u64> = (0..3_000).map(|access| draw(3, access) % 12).collect();
    let ends: Vec<usize> = (1..=keys.len()).collect();
    let count = |policy, window_batches| {
        let mut hits = 0;
        let config = Replay { policy, rows: 4, window_batches, seed: 0 };
        replay(&config, &keys, &ends, &next_uses(&keys), |_, hit| hits += u32::from(hit)).unwrap();
        hits
    };
    // A model of a window by search: the next use within it, then the least recently used.
    let model = |window: usize| {
        let mut cached: Vec<(u64, usize)> = Vec::new(); // key, last use
        let mut hits = 0;
        for (at, &key) in keys.iter().enumerate() {
            if let Some(row) = cached.iter_mut().find(|row| row.0 == key) {
                row.1 = at;
                hits += 1;
                continue;
            }
            if cached.len() == 4 {
                let next = |key: u64| (at..=(at + window).min(keys.len() - 1)).find(|&time| keys[time] == key);
                let far = |row: &(u64, usize)| next(row.0).map_or((1, usize::MAX - row.1), |time| (0, time));
                let victim = cached.iter().max_by_key(|row| far(row)).unwrap().0;
                cached.retain(|row| row.0 != victim);
            }
            cached.push((key, at));
        }
        hits
    };
    for window in [0, 1, 2, 5, 20] {
        assert_eq!(count(PolicyKind::Lookahead, window), model(window), "window of {window}");
    }
    assert_eq!(count(PolicyKind::Lookahead, 0), count(PolicyKind::Lru, 0));
}

#[test]
fn random_takes_every_slot_alike_and_another_seed_takes_others() {
    let victims = |seed| {
        let mut cache = RowCache::new(8, Random::new(8, seed)).unwrap();
        let mut slots = Vec::new();
        for key in 0..8_008u64 {
            if let Access::Miss { slot, evicted: Some(_) } = cache.access(key) {
                slots.push(slot);
            }
        }
        slots
    };
    let slots = victims(1);
    for slot in 0..8 {
        let count = slots.iter().filter(|&&other| other == slot).count();
        // 1,000 of 8,000 expected; the standard deviation is 30.
        assert!((880..1_120).contains(&count), "slot {slot}: {count}");
    }
    assert_ne!(slots, victims(2));
}

/// Store contract, point 7: 24 bytes per cached row, 16 for clock, ghosts included.
#[test]
fn metadata_stays_within_the_contract() {
    fn per_row<P: Policy>(policy: impl Fn(usize) -> P) -> f64 {
        const ROWS: usize = 100_000;
        let mut cache = RowCache::new(ROWS, policy(ROWS)).unwrap();
        for access in 0..3 * ROWS as u64 {
            cache.access(draw(1, access) % (2 * ROWS as u64));
        }
        cache.metadata_bytes() as f64 / ROWS as f64
    }
    let most = METADATA_BYTES_PER_ROW_MAX as f64;
    for (name, bytes, bound) in [
        ("lru", per_row(Lru::new), most),
        ("lfu", per_row(Lfu::new), most),
        ("s3fifo", per_row(S3Fifo::new), most),
        ("sieve", per_row(Sieve::new), most),
        ("lookahead", per_row(Lookahead::new), most),
        ("auto", per_row(Auto::new), most),
        ("clock", per_row(Clock::new), 16.0),
        ("random", per_row(|rows| Random::new(rows, 0)), 16.0),
    ] {
        assert!(bytes <= bound && bytes > 14.0, "{name}: {bytes} bytes per row, at most {bound}");
    }
}

/// Frequencies win while popularity stands still, recency while the working set moves on; auto follows within a
/// few decisions, and its shadows cost the same for every capacity.
#[test]
fn auto_follows_the_stream() {
    const ROWS: usize = 2_000;
    let mut cache = RowCache::new(ROWS, Auto::new(ROWS)).unwrap();
    // Half of the accesses go to 1,500 keys for ever, the other half to keys that never come again.
    for access in 0..400_000u64 {
        let random = draw(5, access);
        cache.access(if random.is_multiple_of(2) { random / 2 % 1_500 } else { 1_000_000 + access });
    }
    assert_ne!(cache.policy().at_work(), PolicyKind::Lru);
    // A window of 1,900 keys moves on by one key with every access.
    for access in 0..400_000u64 {
        let age = (draw(6, access) % 1_900).min(draw(7, access) % 1_900);
        cache.access(10_000_000 + access - age.min(access));
    }
    assert_eq!(cache.policy().at_work(), PolicyKind::Lru);
    let mut slots = cache.policy().coldest_first();
    slots.sort_unstable();
    assert_eq!(slots, (0..ROWS as u32).collect::<Vec<_>>(), "no row was lost in a take-over");
    let larger = Auto::new(50 * ROWS);
    assert_eq!(larger.shadow_bytes(), cache.policy().shadow_bytes());
}

#[test]
fn impossible_sizes_and_windows_are_refused() {
    let error = RowCache::new(0, Lru::new(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("a cache of 0 rows is not possible"), "{error}");
    let mut cache = RowCache::new(4, Lookahead::new(4)).unwrap();
    for _ in 0..WINDOW_BATCHES_MAX {
        cache.announce(&[1]).unwrap();
    }
    assert_eq!(cache.announce(&[1]).unwrap_err().kind(), ErrorKind::Capacity);
    cache.begin_batch();
    cache.announce(&[1]).unwrap();
    let long = Replay { policy: PolicyKind::Lookahead, rows: 4, window_batches: WINDOW_BATCHES_MAX, seed: 0 };
    assert_eq!(replay(&long, &[1], &[1], &[NEVER], |_, _| ()).unwrap_err().kind(), ErrorKind::Config);
    assert!("fifo".parse::<PolicyKind>().unwrap_err().to_string().contains("choose of lru, lfu"));
}
