"""Each rule of the protocol, left out: an edit of the code, and the test that must notice.

A rule that can be left out without a test failing is a rule that somebody will leave out. The edits are exact texts, each
found once in its file: `test_mutations.py` checks that in every run, and does the experiment itself among the soak tests.
Who changes such a line changes the edit with it.
"""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINT = "tests/rules/test_checkpoint_rules.py::"
TAKEOVER = "tests/rules/test_takeover_rules.py::"
COMMIT = "tests/rules/test_commit_rules.py::"
READ = "tests/rules/test_read_rules.py::"
ONCE = "tests/rules/test_once_rules.py::"
SESSION = "tests/rules/test_session_rules.py::"
LIFE = "tests/rules/test_entity_life.py::"
ASKS = "tests/simulator/test_asks.py::"
CONTRACT = "tests/contract/"


@dataclass(frozen=True)
class Mutation:
    rule: str
    without: str
    """What is left out, as one would say it."""
    file: str
    old: str
    new: str
    tests: str
    """One test, by its node ID: without brackets, all its parameters."""

    @property
    def name(self) -> str:
        return f"{self.rule} without {self.without}"


MUTATIONS = [
    # ---- log and seal
    Mutation(
        "PR01",
        "sealing the owners before the last",
        "persistence/recovery.py",
        "sealed = {owner for row in claimed for owner in row.owners if owner != incarnation}",
        "sealed = {row.owners[-2] for row in claimed if len(row.owners) > 1}",
        TAKEOVER + "test_every_owner_that_did_not_release_is_sealed",
    ),
    Mutation(
        "PR01",
        "the claim, which alone allows a seal",
        "persistence/recovery.py",
        "    if not claimed:\n",
        "    for row in await store.shards():\n"
        "        for owner in row.owners:\n"
        "            await store.seal(owner)\n"
        "    if not claimed:\n",
        TAKEOVER + "test_who_does_not_get_the_shard_seals_nobody",
    ),
    Mutation(
        "PR02",
        "keeping the newest row",
        "persistence/memory.py",
        "if n <= through_n and n != log.newest]",
        "if n <= through_n]",
        CONTRACT + "test_log.py::test_the_newest_row_is_never_dropped",
    ),
    Mutation(
        "PR02",
        "a seal that holds for every later n",
        "persistence/memory.py",
        "        if log.seal is not None:\n            raise Fenced(",
        "        if log.seal is not None and n < log.seal:\n            raise Fenced(",
        CONTRACT + "test_log.py::test_the_seal_outlives_the_content",
    ),
    Mutation(
        "PR02",
        "the log that is made once, by the registration alone",
        "persistence/memory.py",
        '            raise ValueError(f"no host was ever registered as incarnation {incarnation}")\n',
        "            self._logs[incarnation] = _Log()\n",
        CONTRACT + "test_log.py::test_there_is_no_log_without_a_host",
    ),
    Mutation(
        "PR03",
        "repeating the same content",
        "sharding/commit.py",
        "await until_done(self._world, partial(self._store.append, self._incarnation, n, content))",
        "await until_done(\n"
        "                self._world,\n"
        "                lambda: self._store.append(\n"
        "                    self._incarnation, n, encode_batch([*batch, *self._filling], self._incarnation, n)\n"
        "                ),\n"
        "            )",
        COMMIT + "test_an_append_with_an_unknown_outcome_is_repeated_as_it_was[on the way back]",
    ),
    Mutation(
        "PR03",
        "repeating at the same n",
        "sharding/commit.py",
        "            await until_done(self._world, partial(self._store.append, self._incarnation, n, content))\n",
        "            try:\n"
        "                await self._store.append(self._incarnation, n, content)\n"
        "            except Exception:\n"
        "                n += 1\n"
        "                content = encode_batch(batch, self._incarnation, n)\n"
        "                await until_done(self._world, partial(self._store.append, self._incarnation, n, content))\n",
        COMMIT + "test_an_append_with_an_unknown_outcome_is_repeated_as_it_was[on the way back]",
    ),
    Mutation(
        "PR04",
        "looking where every shard of a row stands",
        "sharding/upkeep.py",
        "while self._rows and all(position <= complete[shard] for shard, position in self._rows[0][1].items()):",
        "while self._rows:",
        CHECKPOINT + "test_a_checkpoint_lets_go_of_its_log_rows_but_not_of_those_that_came_meanwhile",
    ),
    Mutation(
        "PR04",
        "looking at shards that are somebody else's now",
        "sharding/upkeep.py",
        "all(position <= complete[shard] for shard, position in self._rows[0][1].items())",
        "all(p <= complete[s] for s, p in self._rows[0][1].items() if s in self._shards)",
        CHECKPOINT + "test_a_host_that_lost_a_shard_does_not_let_go_of_the_log_that_its_successor_will_read",
    ),
    Mutation(
        "PR04",
        "keeping a sealed log for its other shards",
        "sharding/upkeep.py",
        "sorted(former - named)",
        "sorted(former)",
        CHECKPOINT + "test_a_sealed_log_is_kept_until_the_last_shard_in_it_is_past_it",
    ),
    Mutation(
        "PR04",
        "letting go at all",
        "sharding/upkeep.py",
        "        if through_n:\n            await self._delete_rows(self._incarnation, through_n)\n",
        "",
        CHECKPOINT + "test_a_checkpoint_lets_go_of_its_log_rows_but_not_of_those_that_came_meanwhile",
    ),
    Mutation(
        "PR05",
        "the checksum",
        "persistence/checksum.py",
        "if blob[1:HEADER_BYTES] != xxh3_64_digest(body, seed=xxh3_64_intdigest(place.encode())):",
        "if False:",
        COMMIT + "test_a_batch_proves_itself_and_its_place",
    ),
    Mutation(
        "PR05",
        "the floor in each record",
        "sharding/performer.py",
        "            window.floor,\n",
        "            0,\n",
        COMMIT + "test_a_record_says_all_that_recovery_needs",
    ),
    # ---- tables and checkpoint
    Mutation(
        "PR06",
        "waiting for the commit",
        "sharding/performer.py",
        "        ticket = self._staging.stage(shard, record)\n",
        "        ticket = self._staging.stage(shard, record)\n        shard.overlay.lay(record)\n",
        CHECKPOINT + "test_tables_never_show_what_was_staged_and_not_committed",
    ),
    Mutation(
        "PR06",
        "looking whether a reply is committed",
        "sharding/window.py",
        " and number not in self._remembered and entry.ticket <= committed:",
        " and number not in self._remembered:",
        CHECKPOINT + "test_tables_never_show_what_was_staged_and_not_committed",
    ),
    Mutation(
        "PR06",
        "taking the recovered tail into the dirty set",
        "persistence/recovery.py",
        "        overlay.lay(record)\n",
        "        pass\n",
        CHECKPOINT + "test_the_recovered_tail_is_the_new_owners_to_write",
    ),
    Mutation(
        "PR07",
        "checking who owns the shard",
        "persistence/ownership.py",
        "return row.state is ShardState.OWNED and row.owner == incarnation and row.epoch == epoch",
        "return True",
        CHECKPOINT + "test_a_zombies_checkpoint_changes_nothing_and_costs_it_the_shard",
    ),
    Mutation(
        "PR07",
        "checking the epoch",
        "persistence/ownership.py",
        "return row.state is ShardState.OWNED and row.owner == incarnation and row.epoch == epoch",
        "return row.state is ShardState.OWNED and row.owner == incarnation",
        CONTRACT + "test_checkpoint.py::test_only_the_owner_at_its_epoch_writes",
    ),
    Mutation(
        "PR08",
        "moving p last",
        "persistence/checkpoint.py",
        "in _writes(parts, rows_max, bytes_max):",
        "in reversed(list(_writes(parts, rows_max, bytes_max))):",
        CHECKPOINT + "test_a_host_killed_between_two_transactions_of_a_checkpoint_loses_nothing",
    ),
    Mutation(
        "PR08",
        "taking p from the beginning of the checkpoint",
        "persistence/overlay.py",
        "            self.frozen_position = committed_position\n        return",
        "        self.frozen_position = committed_position\n        return",
        "tests/unit/test_overlay.py::test_a_checkpoint_that_begins_again_writes_the_same",
    ),
    Mutation(
        "PR08",
        "taking the version of an entity from what was read",
        "sharding/performer.py",
        "return StoredEntity(commits[-1].seq if commits else row.state_seq, row.state, events)",
        "return StoredEntity(row.seq, row.state, events)",
        CHECKPOINT + "test_an_entity_that_is_activated_in_the_middle_of_a_checkpoint_is_whole",
    ),
    Mutation(
        "PR09",
        "the version of a deleted entity",
        "sharding/performer.py",
        "        if row is None:\n            return StoredEntity()\n",
        "        if row is None or row.deleted:\n            return StoredEntity()\n",
        CHECKPOINT + "test_the_version_goes_on_after_a_deletion",
    ),
    Mutation(
        "PR10",
        "looking in the overlay",
        "sharding/performer.py",
        "        for delta in deltas:\n            base = delta.over(base)\n",
        "",
        CHECKPOINT + "test_an_entity_is_read_from_the_overlay_while_the_tables_do_not_have_it",
    ),
    Mutation(
        "PR10",
        "looking in the overlay first",
        "sharding/performer.py",
        "        for delta in deltas:\n            base = delta.over(base)\n",
        "        for delta in shard.overlay.deltas(key):\n            base = delta.over(base)\n",
        CHECKPOINT + "test_a_checkpoint_that_ends_while_an_entity_is_read_hides_nothing",
    ),
    Mutation(
        "PR10",
        "going back to what was staged, not to what is committed",
        "actors/activation.py",
        "        self._base = after\n        if not kind.durable:",
        "        if not kind.durable:",
        CHECKPOINT + "test_a_failed_command_puts_the_entity_back_to_what_was_staged",
    ),
    # ---- claim, recovery, release
    Mutation(
        "PR11",
        "sealing before reading",
        "persistence/recovery.py",
        "        await store.seal(owner)\n",
        "        pass\n",
        TAKEOVER + "test_a_commit_that_hangs_during_a_takeover_is_in_or_out_but_never_both",
    ),
    Mutation(
        "PR11",
        "the order: claim, seal, read",
        "persistence/recovery.py",
        "    for owner in sorted(sealed):\n        await store.seal(owner)\n",
        "    logs = {owner: await store.read_log(owner) for owner in sorted(sealed)}\n"
        "    for owner in sorted(sealed):\n        await store.seal(owner)\n"
        "    store.read_log = lambda owner: _later(logs[owner])\n"
        "    async def _later(rows): return rows\n",
        TAKEOVER + "test_what_the_old_owner_does_until_it_is_sealed_is_seen[seal on its way]",
    ),
    Mutation(
        "PR11",
        "laying the tail over",
        "sharding/shard.py",
        "                self.window(record.client).lay(record)\n",
        "                pass\n",
        TAKEOVER + "test_a_commit_whose_answer_was_lost_with_its_host_is_answered_by_the_next_owner",
    ),
    Mutation(
        "PR11",
        "noticing a hole",
        "persistence/recovery.py",
        "        if record.position != expected:\n",
        "        if False:\n",
        TAKEOVER + "test_a_hole_in_the_tail_is_not_read_over",
    ),
    Mutation(
        "PR12",
        "writing the release into the row",
        "sharding/upkeep.py",
        "            part = self._part(shard, release=True)\n",
        "            part = self._part(shard)\n",
        TAKEOVER + "test_a_release_leaves_nothing_to_seal",
    ),
    Mutation(
        "PR12",
        "the compare-and-set of the release",
        "persistence/ownership.py",
        "return row.state is ShardState.OWNED and row.owner == incarnation and row.epoch == epoch",
        "return True",
        TAKEOVER + "test_a_release_by_who_lost_the_shard_decides_nothing",
    ),
    Mutation(
        "PR13",
        "waiting for the commit of what was staged",
        "sharding/ownership.py",
        "                await self._commits.settled(shard.ticket)\n",
        "",
        TAKEOVER + "test_a_release_waits_for_the_commit_of_what_was_staged",
    ),
    Mutation(
        "PR13",
        "waiting for turns that run",
        "sharding/ownership.py",
        "                await shard.turns_ended()\n",
        "",
        TAKEOVER + "test_a_release_waits_for_the_turn_that_runs_and_sends_the_others_on",
    ),
    Mutation(
        "PR13",
        "rolling back at the deadline",
        "sharding/ownership.py",
        "            shard.phase = Phase.OPEN\n",
        "",
        TAKEOVER + "test_a_turn_that_outlasts_the_deadline_rolls_the_release_back",
    ),
    Mutation(
        "PR13",
        "the floors of clients that wrote nothing",
        "sharding/upkeep.py",
        "clients = set(shard.windows) if release else dirty.clients",
        "clients = dirty.clients",
        TAKEOVER + "test_a_release_carries_the_floors_of_clients_that_wrote_nothing",
    ),
    Mutation(
        "PR13",
        "stopping the intake",
        "sharding/intake.py",
        "        if shard is None or not (shard.phase is Phase.OPEN or self._holds_up_release(call, shard)):\n",
        "        if shard is None:\n",
        TAKEOVER + "test_a_release_waits_for_the_turn_that_runs_and_sends_the_others_on",
    ),
    Mutation(
        "PR13",
        "letting in what a running turn waits for",
        "sharding/intake.py",
        "            if resident is not None and resident.scheduled:\n",
        "            if resident is None:\n",
        ASKS + "test_a_release_lets_in_what_its_running_turns_wait_for",
    ),
    Mutation(
        "PR25",
        "an ID that the next run of the handler finds again",
        "actors/context.py",
        "command_id = derived_command_id(turn.root, stage.asks)",
        "command_id = derived_command_id(str(id(stage)), stage.asks)",
        ASKS + "test_a_handler_that_runs_again_after_a_crash_gets_the_recorded_answer",
    ),
    Mutation(
        "PR25",
        "waiting for the asker's earlier commits",
        "sharding/asks.py",
        "        await self._commits.settled(self._resident.ticket)\n",
        "",
        ASKS + "test_an_ask_leaves_only_when_what_its_asker_did_before_is_durable",
    ),
    Mutation(
        "PR14",
        "condemning before assigning",
        "sharding/coordinator.py",
        " - taking_part | condemned\n",
        " - taking_part\n",
        "tests/unit/test_coordinator.py::test_condemn_first_assign_in_a_later_round",
    ),
    Mutation(
        "PR14",
        "counting only while its own reads succeed",
        "sharding/coordinator.py",
        "            self._silent_since.clear()\n",
        "            pass\n",
        READ + "test_a_coordinator_that_could_not_read_counts_anew",
    ),
    Mutation(
        "PR14",
        "counting from the end of the first read",
        "sharding/coordinator.py",
        "                since = ended\n",
        "                since = began\n",
        "tests/unit/test_coordinator.py::test_a_host_is_condemned_after_a_silent_lease_and_not_before",
    ),
    Mutation(
        "PR14",
        "making a renewal conditional on LIVE",
        "persistence/memory.py",
        "        if not self._is_live(incarnation):\n            return False\n        row = self._hosts[incarnation]\n",
        "        row = self._hosts[incarnation]\n",
        CONTRACT + "test_leases.py::test_a_condemned_host_cannot_renew",
    ),
    Mutation(
        "PR15",
        "living on through an outage",
        "sharding/lease.py",
        "            alive = None  #",
        "            return  #",
        READ + "test_a_store_outage_ends_nobody",
    ),
    Mutation(
        "PR15",
        "counting the lease from before the renewal",
        "sharding/lease.py",
        "            lease.until = began + lease.lease_s\n",
        "            lease.until = monotonic() + lease.lease_s\n",
        READ + "test_a_lease_counts_from_before_its_renewal_was_sent",
    ),
    Mutation(
        "PR16",
        "asking for a refusal as proof",
        "cluster/coordination.py",
        "is not Probe.REFUSED:",
        "is Probe.ACCEPTED:",
        READ + "test_silence_is_no_proof",
    ),
    Mutation(
        "PR16",
        "any proof at all: a lost connection is taken for a death",
        "cluster/coordination.py",
        "is not Probe.REFUSED:",
        "is None:",
        READ + "test_a_host_that_nobody_can_reach_but_that_renews_keeps_its_shards",
    ),
    Mutation(
        "PR16",
        "the proof that makes it quick",
        "cluster/coordination.py",
        "            self._dead.add(host.incarnation)\n",
        "            pass\n",
        READ + "test_a_killed_host_is_relieved_at_once",
    ),
    Mutation(
        "PR16",
        "asking all suspects at once",
        "cluster/coordination.py",
        "        probes = await asyncio.gather(*(self._network.probe(host.address, PROBE_TIMEOUT_S) for host in live))\n",
        "        probes = [await self._network.probe(host.address, PROBE_TIMEOUT_S) for host in live]\n",
        READ + "test_hosts_that_do_not_answer_the_coordinator_do_not_protect_a_silent_one",
    ),
    Mutation(
        "PR17",
        "the lease check",
        "sharding/gate.py",
        "        if self._lease.valid():\n",
        "        if True:\n",
        READ + "test_no_answer_without_effect_leaves_while_the_lease_is_lapsed",
    ),
    Mutation(
        "PR17",
        "waiting for the commit that an answer saw",
        "sharding/gate.py",
        "        if ticket <= self._commits.committed:\n",
        "        if True:\n",
        READ + "test_an_answer_without_effect_waits_for_the_commit_that_it_saw",
    ),
    Mutation(
        "PR17",
        "a repeat waiting for what the first answer saw",
        "sharding/performer.py",
        "window.remember(call.number, RecordedReply(status, payload, 0), resident.ticket)",
        "window.remember(call.number, RecordedReply(status, payload, 0), 0)",
        READ + "test_its_repeat_waits_for_that_commit_too",
    ),
    Mutation(
        "PR18",
        "ending the old process first",
        "persistence/sqlite_log.py",
        "        end_process(process)\n",
        "",
        "tests/sqlite/test_stopped_processes.py::test_sealing_ends_the_process_even_when_it_holds_nothing",
    ),
    # ---- exactly once and order
    Mutation(
        "PR19",
        "taking the floor from the records",
        "sharding/window.py",
        "        self.raise_floor(record.floor)\n",
        "",
        ONCE + "test_a_very_late_copy_below_the_floor_is_dropped_by_the_next_owner_too[failover]",
    ),
    Mutation(
        "PR19",
        "writing recorded replies into the tables",
        "sharding/window.py",
        "        return ClientRow(client, self.floor, tuple(self.recorded(committed)))",
        "        return ClientRow(client, self.floor, ())",
        ONCE + "test_recorded_replies_move_with_the_shard",
    ),
    Mutation(
        "PR19",
        "pruning below the floor",
        "sharding/window.py",
        "                entries.pop(number, None)\n        else:",
        "                pass\n        else:",
        ONCE + "test_raising_the_floor_forgets_in_memory_and_in_the_tables",
    ),
    Mutation(
        "PR20",
        "the riders",
        "sharding/performer.py",
        "            window.take_riders(self._staging.next_ticket),\n",
        "            (),\n",
        ONCE + "test_a_refusal_rides_in_the_clients_next_record",
    ),
    Mutation(
        "PR20",
        "recording the reply of a repeat",
        "sharding/performer.py",
        "(call.attempt > 1 or call.command_id or call.sender)",
        "call.command_id",
        ONCE + "test_a_first_attempt_that_comes_after_its_retry_was_answered_without_effect_does_nothing",
    ),
    Mutation(
        "PR21",
        "looking a repeat up on arrival",
        "sharding/window.py",
        "        if entry is not None and entry is not _READ:\n",
        "        if False:\n",
        ONCE + "test_a_repeat_finds_its_first_copy_wherever_that_is",
    ),
    Mutation(
        "PR21",
        "looking a command ID up at the start of the turn",
        "sharding/performer.py",
        "            if known is not None:\n                self._repeat(resident, pending, known)\n                return False\n",
        "",
        ONCE + "test_one_command_id_from_two_clients_at_once_and_again_later_is_one_effect",
    ),
    Mutation(
        "PR21",
        "looking a command ID up in the tables",
        "sharding/performer.py",
        "        if row is not None:\n            self._repeat",
        "        if False:\n            self._repeat",
        ONCE + "test_one_command_id_from_two_clients_at_once_and_again_later_is_one_effect",
    ),
    Mutation(
        "PR21",
        "a repeat waiting for the commit",
        "sharding/intake.py",
        "            self._gate.read(known.ticket, pending, answer)\n",
        "            self._gate.read(0, pending, answer)\n",
        ONCE + "test_a_repeat_finds_its_first_copy_wherever_that_is",
    ),
    Mutation(
        "PR22",
        "asking for the predecessor",
        "sharding/window.py",
        "        if prev >= self.floor and prev not in entries:\n",
        "        if False:\n",
        ONCE + "test_a_bounce_from_a_full_mailbox_keeps_the_order_of_what_follows",
    ),
    Mutation(
        "PR22",
        "resending in order",
        "cluster/lanes.py",
        "        for number, out in self.unanswered.items():\n            key",
        "        for number, out in reversed(self.unanswered.items()):\n            key",
        "tests/unit/test_lanes.py::test_floor_and_prev_are_those_of_who_remembers_everything",
    ),
    Mutation(
        "PR22",
        "closing the older connection",
        "sharding/intake.py",
        '            known.close("replaced by a newer connection of this client")\n',
        "            pass\n",
        ONCE + "test_an_older_connection_is_not_listened_to_any_more",
    ),
    Mutation(
        "PR26",
        "giving the number up",
        "cluster/client.py",
        "        self._forget(lane, out)\n        if not out.done.done():",
        "        if not out.done.done():",
        ONCE + "test_a_number_whose_caller_was_told_unknown_is_given_up",
    ),
    Mutation(
        "PR26",
        "dropping what was given up in the mailbox",
        "sharding/performer.py",
        "        elif call.number < pending.window.floor:\n            return False\n",
        "",
        ONCE + "test_a_command_in_the_mailbox_that_was_given_up_does_not_run",
    ),
    Mutation(
        "PR26",
        "the digest",
        "sharding/performer.py",
        "        if reply.digest != digest_of(call):\n",
        "        if False:\n",
        ONCE + "test_a_command_id_that_is_used_for_other_work_is_refused",
    ),
    Mutation(
        "PR26",
        "the age of an ID",
        "sharding/intake.py",
        "        if born_ms is not None and",
        "        if False and",
        ONCE + "test_a_command_id_that_carries_its_age_is_refused_when_it_is_too_old",
    ),
    Mutation(
        "PR27",
        "the check at the handshake",
        "sharding/host.py",
        "            return None if client in await self._store.touch_sessions([client]) else client\n",
        "            return client\n",
        SESSION + "test_a_host_asks_the_store_whether_a_session_still_exists",
    ),
    Mutation(
        "PR27",
        "forgetting windows and rows",
        "sharding/host.py",
        "                shard.forget((known - alive) & shard.windows.keys())\n",
        "                pass\n",
        SESSION + "test_a_client_that_stays_away_is_forgotten_everywhere",
    ),
    Mutation(
        "PR27",
        "deleting the rows of the forgotten",
        "sharding/upkeep.py",
        "            forgotten_clients=tuple(sorted(shard.forgotten)),\n",
        "",
        SESSION + "test_a_client_that_stays_away_is_forgotten_everywhere",
    ),
    Mutation(
        "PR27",
        "renewing the sessions of those that are connected",
        "sharding/host.py",
        "partial(self._store.touch_sessions, peers)",
        "partial(self._store.touch_sessions, ())",
        SESSION + "test_a_client_that_stays_away_is_forgotten_everywhere",
    ),
    Mutation(
        "PR27",
        "noticing a fork",
        "cluster/client.py",
        "if self._closed or self._pid != os.getpid():",
        "if self._closed:",
        SESSION + "test_a_forked_child_may_not_speak_with_its_parents_numbers",
    ),
    # ---- behaviours that are no rule of their own
    Mutation(
        "S09",
        "dropping what a lost shard staged",
        "sharding/performer.py",
        "        if shard.phase is Phase.CLOSED:\n            return  # lost",
        "        if False:\n            return  # lost",
        TAKEOVER + "test_a_host_that_lost_a_shard_runs_none_of_its_turns_any_more",
    ),
    Mutation(
        "M13",
        "holding commands back while an entity leaves",
        "sharding/host.py",
        "            resident.scheduled = True  # no turn",
        "            pass  # no turn",
        LIFE + "test_a_command_that_arrives_while_an_entity_leaves_waits_for_it_to_come_back",
    ),
]
