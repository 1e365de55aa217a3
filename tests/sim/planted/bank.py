"""The bugs that the simulation must find. A change of the harness must find them all again."""

from __future__ import annotations

from sim.planted.editing import Planted

CORE, LOG = "qbroker.core", "qbroker.log"

ARCHIVE = frozenset(("archive", "tasks", "results", "archivist killed"))
ROT = frozenset(
    ("tasks", "minted ids", "watch", "large bodies", "consumers", "delays", "results", "peek")
)

BANK = [
    # Durability
    Planted(
        "confirm_before_sync",
        "answers leave when they are written, not when they are durable",
        "qbroker.groupcommit:GroupCommit.released",
        "self._log.durable, self._log.written",
        "self._log.written, self._log.written",
    ),
    Planted(
        "duplicate_before_sync",
        "a chunk that came before is called a duplicate before it is durable",
        "qbroker.core.publishing:decide_publish",
        "duplicate=True)",
        "duplicate=True), synced=False",
        focus=frozenset(("resend", "cut on an answer", "slow sync")),
    ),
    Planted(
        "skip_directory_sync",
        "the name of a new segment may be lost, and all in it",
        "qbroker.log.active:create_segment",
        "disk.sync_directory()",
        "None",
    ),
    Planted(
        "meta_before_its_content",
        "META is renamed into place before its content is on the disk",
        "qbroker.log.meta:stage_meta",
        "file.sync()",
        "None",
    ),
    Planted(
        "cache_taken_for_the_disk",
        "what a failed sync left in the cache is taken for what the disk holds",
        "qbroker.log.recovery:_opened",
        "file.forget_cache()",
        "None",
    ),
    Planted(
        "durable_after_write",
        "a batch counts as durable when it was written",
        "qbroker.log.log:Log.sync",
        "self._sync()",
        "self.durable = self.written",
    ),
    Planted(
        "seal_without_sync",
        "a sealed segment's footer is not on the disk when the next one begins",
        "qbroker.log.active:SegmentWriter.seal",
        "self.file.sync()",
        "None",
    ),
    Planted(
        "torn_tail_accepted",
        "a batch whose digest disagrees is taken for intact",
        "qbroker.log.format:check_batch",
        "if digest != content[-CHAIN_BYTES:]:",
        "if False:",
    ),
    Planted(
        "corruption_taken_for_torn",
        "confirmed batches that are damaged are cut off like a torn tail",
        "qbroker.log.recovery:_settle_tail",
        "if confirmed > segment.last:",
        "if False:",
    ),
    Planted(
        "failure_of_a_sync_ignored",
        "after a failed sync the broker goes on and confirms",
        "qbroker.engine:Engine._written",
        "self._fail(result)\n        return",
        "result = 0.0",
    ),
    Planted(
        "relaxed_confirm_before_write",
        "a relaxed confirm leaves before its batch is with the kernel",
        "qbroker.groupcommit:GroupCommit.released",
        "if each.batch > written:",
        "if False:",
        focus=frozenset(
            (
                "relaxed",
                "tasks",
                "large bodies",
                "kill",
                "cut on an answer",
                "slow sync",
                "cut at a site",
            )
        ),
    ),
    # Tokens and leases
    Planted(
        "stale_token_accepted",
        "an ack by any grant ends the lease that is there now",
        "qbroker.core.settling:decide_ack",
        "if each and each.number == number and position not in seen",
        "if each and position not in seen",
    ),
    Planted(
        "stale_outcome_accepted",
        "an outcome by any grant ends the lease that is there now",
        "qbroker.core.settling:decide_settle",
        "grant is not None and grant.number == outcome.grant",
        "grant is not None",
    ),
    Planted(
        "grant_used_again_after_restart",
        "the epoch stays the same, so grants of two lives are the same numbers",
        "qbroker.core.broker:Broker.boot",
        "self.state.epoch + 1",
        "max(1, self.state.epoch)",
    ),
    Planted(
        "claim_of_what_is_running_forgotten",
        "a worker that comes back is not believed",
        "qbroker.core.sessions:reclaim",
        "if session and grant and grant.number == number and grant.member.session is session:",
        "if False:",
    ),
    Planted(
        "settled_grant_claimed_again",
        "a grant that was claimed and settled is claimed once more",
        "qbroker.core.sessions:claimable",
        "None if number < attempts.claims_from else attempts.run",
        "attempts.run",
        focus=frozenset(("tasks", "crash outcome", "kill", "power cut")),
    ),
    Planted(
        "claims_window_skipped",
        "after a crash messages are handed out before workers could claim them",
        "qbroker.engine:Engine.run",
        "if not self._log.clean:",
        "if False:",
        focus=frozenset(("tasks", "kill", "power cut")),
    ),
    Planted(
        "prefetched_counts_as_crashed",
        "what a lost worker had not begun counts as a crash",
        "qbroker.core.leaving:give_back_some",
        "(rest.lost and position in grant.started)",
        "rest.lost",
    ),
    Planted(
        "early_ack_runs_twice",
        "a message that began, acks early, is handed out again",
        "qbroker.core.leaving:give_back_some",
        "early = position in grant.early",
        "early = False",
    ),
    Planted(
        "leases_lost_in_a_freeze",
        "a broker that stood still blames its workers",
        "qbroker.core.broker:Broker.stalled",
        "session.alive_until_ms += missed_ms",
        "session.alive_until_ms -= missed_ms",
        focus=frozenset(("tasks", "freeze")),
    ),
    Planted(
        "heartbeats_not_heard",
        "a worker's words do not keep its session",
        "qbroker.core.broker:Broker.heard",
        "if member and member.session and not member.number:",
        "if False:",
    ),
    Planted(
        "lost_worker_keeps_its_messages",
        "what a lost worker held is never given back",
        "qbroker.core.leaving:part",
        "if grants:",
        "if grants and not lost:",
    ),
    # Queues, credit
    Planted(
        "credit_leaks",
        "an acked message goes on using its subscription's credit",
        "qbroker.core.state:BrokerState.let_go",
        "consumer.unsettled -= count",
        "consumer.unsettled -= count - 1",
    ),
    Planted(
        "credit_ignored",
        "a subscription gets one more than its credit",
        "qbroker.core.leases:Consumer.room",
        "self.credit - self.unsettled",
        "self.credit + 1 - self.unsettled",
    ),
    Planted(
        "queue_forgotten",
        "a message that waits again wakes nobody",
        "qbroker.core.state:BrokerState.listen_again",
        "if queue.ready:",
        "if False:",
    ),
    Planted(
        "priority_inverted",
        "the lowest priority leaves first",
        "qbroker.core.shelves:Selection.enlist",
        "insort(self.priorities, level.priority)",
        "self.priorities.insert(0, level.priority)",
    ),
    Planted(
        "last_in_first_out",
        "lanes that wait longer leave later",
        "qbroker.core.runs:Run.first",
        "return self.chunks[0][self.head]",
        "return self.chunks[-1][-1]",
    ),
    Planted(
        "purge_forgets_delayed",
        "a purge leaves the delayed messages, which come when they are due",
        "qbroker.core.purging:apply_purged",
        "trees = state.timers.drop(queue.number)",
        "trees = []",
    ),
    # Time
    Planted(
        "delay_ignored",
        "delayed messages come at once",
        "qbroker.core.publishing:apply_messages",
        "if due_ms:",
        "if due_ms and count > 1:",
    ),
    Planted(
        "timers_never_fire",
        "what is delayed is never due",
        "qbroker.core.passing:records_due",
        "r.CameDue(now.wall_ms, count)",
        "r.CameDue(now.wall_ms, 0)",
    ),
    Planted(
        "cancel_leaves_the_timer",
        "a delayed message that was cancelled comes when it is due",
        "qbroker.core.state:BrokerState.withdraw",
        "self.cancelled.add(position)",
        "pass",
    ),
    Planted(
        "running_message_expires",
        "a message whose time is over is taken from the worker that runs it",
        "qbroker.core.passing:expired",
        "state.late.add(position)",
        "over.append([position, number >> 8, (number & 0xFF) - 128])",
    ),
    # Counters, retries
    Planted(
        "failures_not_counted",
        "a failure that runs again leaves no trace",
        "qbroker.core.endings:retry",
        "known.failures + 1",
        "known.failures",
    ),
    Planted(
        "release_counts_as_failure",
        "giving a message back counts against it",
        "qbroker.core.endings:release",
        "wait_again(state, record, run, state.known(record.position))",
        "wait_again(state, record, run, state.known(record.position)._replace(failures=1))",
    ),
    Planted(
        "dead_letter_dropped",
        "what has failed for good is gone",
        "qbroker.core.endings:bury",
        "state.ready(target, record.position, 1)",
        "state.forget(record.position)",
    ),
    # Publishing
    Planted(
        "producer_window_off_by_one",
        "a chunk just behind the window is taken for new",
        "qbroker.core.publishing:seen_before",
        ">= PRODUCER_WINDOW",
        "> PRODUCER_WINDOW",
    ),
    Planted(
        "resend_is_taken_twice",
        "a chunk that comes again is done again",
        "qbroker.core.publishing:seen_before",
        "return bool(known.window >> (known.highest - sequence) & 1)",
        "return False",
    ),
    Planted(
        "upload_seen_before_its_end",
        "the parts of a publish are handed out before the last one is here",
        "qbroker.core.publishing:apply_part",
        "upload.count += batch.count",
        "upload.count += batch.count\n    apply_messages(state, position, batch)",
    ),
    Planted(
        "refused_chunk_is_kept",
        "a chunk is refused because of its count, after it was taken in",
        "qbroker.core.publishing:note_chunk",
        "known.highest = sequence",
        "known.highest = sequence + 1",
    ),
    # Results
    Planted(
        "results_before_sync",
        "who waits hears of a result that a crash may undo",
        "qbroker.core.state:BrokerState.finish",
        "synced=synced",
        "synced=False",
        focus=frozenset(
            ("tasks", "minted ids", "results", "watch", "cut on an answer", "slow sync")
        ),
    ),
    Planted(
        "result_of_another",
        "a result is told from the record before it",
        "qbroker.core.endings:finished",
        "        position,\n        record.content,",
        "        position - (1 << 20),\n        record.content,",
    ),
    Planted(
        "result_dropped",
        "results are forgotten at once",
        "qbroker.core.results:Results.get",
        "entry.keep_until_ms > wall_ms",
        "entry.keep_until_ms > wall_ms + 10**12",
    ),
    # What cannot be read
    Planted(
        "refused_taken_for_damaged",
        "what the disk refuses once is set aside as if it had rotted",
        "qbroker.bodies:Bodies._read",
        "isinstance(trouble, UnreadableError) and not self._is_hopeless(batch)",
        "False",
        focus=ROT | {"bad sectors"},
    ),
    # The archive
    Planted(
        "archive_says_what_it_was_told",
        "the archivist reports how far the log is, not how far it has committed",
        "qbroker.archive.process:Process._report",
        '"archived": batch',
        '"archived": max(batch, self._orders.upto)',
        focus=ARCHIVE,
    ),
    Planted(
        "archive_goes_on_a_batch_late",
        "an archivist that starts again leaves out a batch",
        "qbroker.archive.archivist:Archivist.__init__",
        "self.read = store.batch",
        "self.read = store.batch + bool(store.batch)",
        focus=ARCHIVE,
    ),
    Planted(
        "archive_doubles_a_batch",
        "an archivist that starts again takes the last batch once more",
        "qbroker.archive.archivist:Archivist.__init__",
        "self.read = store.batch",
        "self.read = max(0, store.batch - 1)",
        focus=ARCHIVE | {"retries"},
    ),
    Planted(
        "results_are_shed",
        "an archivist that lags leaves out results, too",
        "qbroker.archive.following:Follower._succeeded",
        "not record.keep_until_ms and (is_brief or self.is_shedding)",
        "self.is_shedding or (not record.keep_until_ms and is_brief)",
        focus=ARCHIVE | {"archivist slow"},
    ),
    Planted(
        "cleaned_before_archived",
        "a checkpoint lets the log go of what the archive has yet to read",
        "qbroker.checkpoint.keeping:Keeping.order",
        "upto = min(self._archived(), durable)",
        "upto = durable",
        focus=ARCHIVE | {"checkpoints", "archivist stalled"},
    ),
    # Checkpoints
    Planted(
        "last_checkpoint_names_another_batch",
        "the checkpoint of a clean stop has a batch that the next start applies once more",
        "qbroker.checkpoint.keeping:Keeping._write",
        "batch = self._log.durable",
        "batch = max(1, self._log.durable - 1)",
        focus=frozenset(("tasks", "retries", "checkpoints", "clean restart")),
    ),
    # Routing
    Planted(
        "copy_lost",
        "of two queues that are bound, one gets no copy",
        "qbroker.core.copying:Copies.copy",
        "for packed, route, queue in recipe.copies:",
        "for packed, route, queue in recipe.copies[:1]:",
        focus=frozenset(("routing", "tasks")),
    ),
    Planted(
        "copy_doubled",
        "a queue that two bindings lead to gets two copies",
        "qbroker.core.copying:Copies.copy",
        "for packed, route, queue in recipe.copies:",
        "for packed, route, queue in recipe.copies + recipe.copies[-1:]:",
        focus=frozenset(("routing", "tasks")),
    ),
    Planted(
        "bindings_lost_by_a_checkpoint",
        "a checkpoint holds exchanges without one of their bindings",
        "qbroker.core.exchanges:Exchanges.restore",
        "for binding in bindings:",
        "for binding in bindings[:-1]:",
        focus=frozenset(("routing", "checkpoints", "kill", "clean restart", "power cut")),
    ),
]
