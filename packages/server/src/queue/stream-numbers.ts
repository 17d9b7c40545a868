/**
 * The numbers of a stream that do not follow from its messages, and the time at which compaction has to look at the
 * stream next. The durable numbers are in the page with the counters.
 */

/** A pass starts at once if at least this many messages are new, and at least half of all. */
const NEW_MIN = 16_384
/** A pass over fewer new messages starts this long after the last one, if they are at least half of all. */
const SOON_MS = 10_000
/** Any new message is compacted at the latest this long after the last pass. */
const LATE_MS = 24 * 3_600_000
/** Minimum time between two passes that only remove tombstones. */
const TOMBSTONES_MS = 60_000

export class StreamNumbers {
  /** Retention has removed all messages below this offset. */
  releasedBelow = 0
  /** Number of messages that compaction has removed. */
  compacted = 0
  /** The last complete pass of compaction began when this was the next offset. */
  compactedBelow = 0
  /** Publish time of the oldest tombstone that this pass kept because of its age; 0 if there was none. */
  tombstoneMs = 0
  /** Whether a pass is running or wanted. Volatile. */
  isCompacting = false
  /** Time at which the last pass ended, or the broker started. Volatile. */
  passedMs = 0

  /**
   * Time at which the next pass is due; Infinity if there is nothing to do. The stream keeps `messages`, and its next offset
   * is `next`. A pass reads the whole stream, so it waits until half of the stream is new: then a message is read twice
   * on average.
   */
  nextPassMs(next: number, messages: number, tombstoneAgeMs: number): number {
    if (this.isCompacting) return Infinity
    let dueMs = Infinity
    const fresh = next - this.compactedBelow
    if (fresh > 0) {
      const isMost = fresh * 2 >= messages
      if (isMost && fresh >= NEW_MIN) return this.passedMs
      dueMs = this.passedMs + (isMost ? SOON_MS : LATE_MS)
    }
    if (this.tombstoneMs === 0) return dueMs
    const agedMs = this.tombstoneMs + tombstoneAgeMs
    return Math.min(dueMs, Math.max(agedMs, this.passedMs + Math.max(TOMBSTONES_MS, tombstoneAgeMs / 2)))
  }
}
