/*
 * handover.pml: a range of keys moves from one node to another while clients write to it, a person calls
 * the move off, messages are lost or come late, and each process dies and comes back. `make model` has
 * Spin look at every order of events. docs/MOVES.md tells the same in prose.
 *
 * The source, its migrator and the target are as docs/MOVES.md, internal/moves and internal/ownership of
 * the storage-node and internal/move of the migrator say:
 *
 *   source   durable: the records, their order (the log), the move, the fence, what was given away.
 *            In memory: writes that are admitted and not applied yet.
 *   target   durable: the records, whether it is prepared, has declined or accepted. Its death between two
 *            messages changes nothing then; one in the middle of a message is a message that is lost.
 *   migrator durable: nothing. It asks the source what is next; a call that fails, for whatever reason, and
 *            its own death are the same: it begins again with what the source knows.
 *
 * A message to the target is lost, or done and its answer lost, or done and answered, or comes late: up to
 * LATE of them are delivered at any later time. Comparing both sides is left out: what is proven here does
 * not rest on it. A key is written once; which node takes the write is left to chance.
 *
 * Asserted after each step:
 *   - what was acknowledged is on the source or on the target, and at the one that owns the range;
 *   - never can both acknowledge a write;
 *   - once the move is COMMITTED, what was acknowledged is at the target.
 * Asserted where nothing can happen any more: the move is RELEASED and the target accepts writes, or it is
 * CANCELLED and the source does.
 *
 * Each of these makes it wrong on purpose, and Spin has to say so:
 *   NO_FENCE      the target accepts while the source takes writes
 *   NO_WAIT       the fence does not wait for writes that were admitted before it
 *   LATE_PIN      the log is followed from the end of the copy on, not from its beginning
 *   NO_SHIP       the target accepts before it has all up to the fence
 *   GIVE_FIRST    the source gives before the target has accepted
 *   ACK_EARLY     the target acknowledges records that its death can lose
 *   BLIND_LIFT    the fence is lifted without asking a target that may have accepted
 *   ORPHAN_FENCE  a fence that the move does not know of stays when it is called off
 *   NO_FLOOR      a target that has declined accepts a message that comes late
 * And these, that the end is reached at all: REACH_RELEASED, REACH_CANCELLED.
 */

#ifndef KEYS
#define KEYS 2    /* clients, each of which writes a key of its own once */
#endif
#ifndef DEATHS
#define DEATHS 1  /* of the source */
#endif
#ifndef LATE
#define LATE 2    /* messages that come late */
#endif
#ifndef ROUNDS
#define ROUNDS 2  /* hand-overs that are begun: each that is put off has an epoch of its own */
#endif

#define ALL ((1 << KEYS) - 1)

/* States of the move; those of the life of a real one that matter here. */
#define PLANNED   0
#define COPYING   1
#define TAILING   2
#define VERIFYING 3
#define FENCED    4
#define ACCEPTED  5
#define COMMITTED 6
#define RELEASED  7
#define CANCELLED 8

/* The source. */
byte s_data;           /* keys that it has, as bits */
byte s_log[KEYS + 1];  /* the key of each sequence */
byte s_sequence;       /* of the newest write */
byte s_admitted;       /* writes that are under way */
byte s_life;           /* rises with each death */
bool s_fence, s_given;
/* The move, at the source. */
byte m_state = PLANNED;
byte m_cursor, m_tail, m_fence, m_epoch;
bool m_cancelling;
/* The target. */
byte t_data;
bool t_prepared, t_accepted;
byte t_floor;          /* epochs up to it were declined */
/* What clients were told. */
byte acknowledged;

#define holds(data, keys) (((data) & (keys)) == (keys))
#define s_accepts  (!s_fence && !s_given)
#define t_accepts  (t_accepted)
/* A write that was admitted before the fence may still be acknowledged. */
#define s_may_acknowledge (s_accepts || s_admitted > 0)

inline check() {
	assert(holds(s_data | t_data, acknowledged));
	assert(t_accepts || holds(s_data, acknowledged));
	assert(!t_accepts || holds(t_data, acknowledged));
	assert(!(s_may_acknowledge && t_accepts));
	assert(!(m_state == COMMITTED || m_state == RELEASED) || holds(t_data, acknowledged))
}

/* ------------------------------------------------------------------ clients */

proctype Client(byte key) {
	byte life;
again:
	if
	:: atomic { s_accepts -> s_admitted++; life = s_life };
	   if
	   :: atomic {
	          life == s_life ->
	          s_sequence++;
	          s_log[s_sequence] = key;
	          s_data = s_data | (1 << key);
	          acknowledged = acknowledged | (1 << key);
	          s_admitted--;
	          check()
	      }
	   :: life != s_life -> goto again  /* it was never answered, and asks again */
	   fi
	:: atomic {
	       t_accepts ->
	       t_data = t_data | (1 << key);
	       acknowledged = acknowledged | (1 << key);
	       check()
	   }
	fi
}

/* The source dies, and comes back with what is durable. */
proctype Deaths() {
	do
	:: atomic { s_life < DEATHS -> s_life++; s_admitted = 0; check() }
	:: break
	od
}

/* A person calls the move off, or does not. */
proctype Person() {
	if
	:: atomic {
	       if
	       :: m_state < FENCED -> m_state = CANCELLED
	       :: m_state == FENCED -> m_cancelling = true
	       :: else -> skip  /* refused: there is a new owner, or it is over */
	       fi;
	       check()
	   }
	:: true
	fi
}

/* -------------------------------------------------------- the target's side */

/* Messages. */
#define INGEST  1
#define PREPARE 2
#define ACCEPT  3
#define DECLINE 4
/* Answers. */
#define UNKNOWN 0
#define DONE    1
#define REFUSED 2

byte reply;

/* The target does what a message says: durably, or not at all. */
inline deliver(kind, argument) {
	if
	:: kind == INGEST -> t_data = t_data | (1 << argument); reply = DONE
	:: kind == PREPARE ->
	   if
	   :: !t_accepted -> t_prepared = true
	   :: else -> skip
	   fi;
	   reply = DONE
	:: kind == ACCEPT ->
	   if
	   :: t_accepted -> reply = DONE
#ifdef NO_FLOOR
	   :: !t_accepted && t_prepared -> t_accepted = true; reply = DONE
	   :: !t_accepted && !t_prepared -> reply = REFUSED
#else
	   :: !t_accepted && t_prepared && argument > t_floor -> t_accepted = true; reply = DONE
	   :: !t_accepted && !(t_prepared && argument > t_floor) -> reply = REFUSED
#endif
	   fi
	:: kind == DECLINE ->  /* REFUSED: too late */
	   if
	   :: t_accepted -> reply = REFUSED
	   :: else ->
	      t_prepared = false;
	      if
	      :: argument > t_floor -> t_floor = argument
	      :: else -> skip
	      fi;
	      reply = DONE
	   fi
	fi;
	check()
}

byte late_kind[LATE + 1], late_argument[LATE + 1];
byte late;  /* how many were put aside */

/* The migrator calls the target. It is part of an atomic step. */
inline call(kind, argument) {
	if
	:: deliver(kind, argument)                                /* answered */
	:: deliver(kind, argument); reply = UNKNOWN               /* the answer is lost */
	:: reply = UNKNOWN                                        /* the message is lost */
	/* It comes when nobody waits for it. Records may always: they are joined. */
	:: late < LATE && kind != INGEST ->
	   late_kind[late] = kind;
	   late_argument[late] = argument;
	   late++;
	   reply = UNKNOWN
#ifdef ACK_EARLY
	:: kind == INGEST -> reply = DONE                         /* the target died just after */
#endif
	fi
}

/* What comes late is delivered some time, or never. Nobody waits for its answer. */
proctype Network() {
	byte i, before;
end:	do
	:: atomic {
	       late > i ->
	       before = reply;
	       if
	       :: deliver(late_kind[i], late_argument[i])
	       :: skip
	       fi;
	       reply = before;
	       before = 0;
	       late_kind[i] = 0;
	       late_argument[i] = 0;
	       i++
	   }
	:: i == LATE -> break
	od
}

/* ------------------------------------------------------------- the migrator */

#if defined(NO_FENCE) || defined(NO_WAIT)
#define fenced_writes_are_done true
#else
#define fenced_writes_are_done (s_admitted == 0)
#endif
#ifndef NO_SHIP
#define shipped (m_tail >= m_fence)
#else
#define shipped true
#endif

proctype Migrator() {
	bool begun;        /* the fence is of this process */
	bool accepting;    /* Accept is sent, or about to be */
	bool snapshot;     /* there is one */
	byte snapshotted;  /* its keys */
	byte rounds;       /* hand-overs that were begun, of all processes: a bound of the model */

	do
	/* It dies, or gives up what it does, and begins with what the source knows. */
	:: begun || accepting || snapshot -> begun = false; accepting = false; snapshot = false; snapshotted = 0

	:: atomic {
	       m_state == PLANNED ->
	       m_tail = s_sequence;  /* the log is held from here on */
	       m_state = COPYING;
	       check()
	   }

	/* The copy: keys in order, from a snapshot; a process that goes on takes a new one. */
	:: atomic { m_state == COPYING && !snapshot -> snapshot = true; snapshotted = s_data }
	:: atomic {
	       m_state == COPYING && snapshot && m_cursor < KEYS ->
	       if
	       :: (snapshotted & (1 << m_cursor)) != 0 -> call(INGEST, m_cursor)
	       :: else -> reply = DONE
	       fi;
	       if
	       :: reply == DONE -> m_cursor++
	       :: else -> skip
	       fi;
	       reply = UNKNOWN
	   }
	:: atomic {
	       m_state == COPYING && m_cursor == KEYS ->
	       snapshot = false;
	       snapshotted = 0;
#ifdef LATE_PIN
	       m_tail = s_sequence;
#endif
	       m_state = TAILING
	   }

	/* What was written since. */
	:: atomic {
	       m_state >= TAILING && m_state <= FENCED && m_tail < s_sequence ->
	       call(INGEST, s_log[m_tail + 1]);
	       if
	       :: reply == DONE -> m_tail++
	       :: else -> skip
	       fi;
	       reply = UNKNOWN
	   }
	:: atomic { m_state == TAILING -> m_state = VERIFYING }

	/* The hand-over: the target prepares, then the source fences, in three durable steps. */
	:: m_state == VERIFYING && rounds < ROUNDS ->
	   atomic { call(PREPARE, 0); if :: reply == DONE -> rounds++ :: else -> skip fi };
	   if
	   :: atomic { reply == DONE -> reply = UNKNOWN }
	   :: reply != DONE -> goto again
	   fi;
	   atomic {
	       if
	       :: m_state == VERIFYING ->
#ifndef NO_FENCE
	          s_fence = true
#else
	          skip
#endif
	       :: else -> skip
	       fi
	   };
	   if
	   :: true -> skip
	   :: true -> goto again  /* the source, or the migrator, dies with the fence half done */
	   fi;
	   if
	   :: fenced_writes_are_done
	   :: true -> goto again
	   fi;
	   atomic {
	       if
	       :: m_state == VERIFYING -> m_fence = s_sequence; m_state = FENCED; begun = true
	       :: m_state == CANCELLED -> s_fence = false  /* it was called off meanwhile */
	       :: else -> skip
	       fi;
	       check()
	   }

	/* All up to the fence is there: from the epoch on, Accept may have been sent. */
	:: atomic {
	       m_state == FENCED && begun && !accepting && !m_cancelling && shipped ->
	       m_epoch++;
#ifdef GIVE_FIRST
	       s_given = true;
	       check();
#endif
	       accepting = true
	   }
	:: atomic {
	       m_state == FENCED && accepting ->
	       call(ACCEPT, m_epoch);
	       if
	       :: reply == DONE -> m_state = ACCEPTED; m_cancelling = false; accepting = false; begun = false
	       :: reply == REFUSED -> accepting = false; begun = false
	       :: reply == UNKNOWN -> skip  /* again, or as somebody who does not know */
	       fi;
	       reply = UNKNOWN;
	       check()
	   }

	/* Called off before Accept was sent in this round: the target is told once, and the fence lifted. */
	:: atomic {
	       m_state == FENCED && begun && !accepting && m_cancelling ->
	       call(DECLINE, m_epoch);
	       if
	       :: reply == REFUSED -> skip  /* it can't be */
	       :: else -> s_fence = false; m_fence = 0; m_cancelling = false; m_state = CANCELLED
	       fi;
	       begun = false;
	       reply = UNKNOWN;
	       check()
	   }

	/* A fence of another process. Without an epoch Accept was never sent. */
	:: atomic {
	       m_state == FENCED && !begun && !accepting ->
#ifdef BLIND_LIFT
	       reply = DONE;
#else
	       if
	       :: m_epoch == 0 -> reply = DONE
	       :: else -> call(DECLINE, m_epoch)
	       fi;
#endif
	       if
	       :: reply == DONE ->
	          s_fence = false;
	          m_fence = 0;
	          if
	          :: m_cancelling || rounds == ROUNDS -> m_cancelling = false; m_state = CANCELLED
	          :: else -> m_state = VERIFYING
	          fi
	       :: reply == REFUSED -> m_state = ACCEPTED; m_cancelling = false
	       :: else -> skip
	       fi;
	       reply = UNKNOWN;
	       check()
	   }

	:: atomic { m_state == ACCEPTED -> s_given = true; m_state = COMMITTED; check() }
	:: atomic { m_state == COMMITTED -> m_state = RELEASED; check() }
	/* What the source has of it may go, long after. */
	:: atomic { m_state == RELEASED -> s_data = 0; s_fence = false; check(); break }
	/* A fence that was half done when it was called off is lifted: by the source, when it comes back. */
	:: atomic {
	       m_state == CANCELLED ->
#ifndef ORPHAN_FENCE
	       s_fence = false;
#endif
	       check();
	       break
	   }
	/* The bound of the model: nobody begins for ever. */
	:: atomic { m_state == VERIFYING && rounds == ROUNDS && !s_fence -> m_state = CANCELLED }
	:: atomic { m_state == VERIFYING && rounds == ROUNDS && s_fence -> s_fence = false; m_state = CANCELLED; check() }
again:
	   skip
	od;

	timeout;  /* nothing else can happen */
#ifdef REACH_RELEASED
	assert(m_state != RELEASED);
#endif
#ifdef REACH_CANCELLED
	assert(m_state != CANCELLED);
#endif
	assert(m_state == RELEASED && t_accepts && !s_accepts || m_state == CANCELLED && s_accepts && !t_accepts);
	assert(acknowledged == ALL)
}

init {
	byte i;
	atomic {
		run Migrator();
		run Deaths();
		run Person();
		run Network();
		for (i : 0 .. KEYS - 1) { run Client(i) }
	}
}
