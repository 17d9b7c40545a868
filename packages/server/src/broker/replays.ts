/**
 * Replays: publishes again the acknowledged messages that a queue retains, in the order of their offsets. A replay ends
 * at the offset that was the next one of the queue when its first page was requested, so it does not replay its own
 * copies.
 *
 * Invariant: a page takes several turns, and the state of a message is checked again after each wait. A page needs only
 * its cursor, so the broker keeps nothing between two pages.
 */
import { SluiceError, type ReplayRequest } from '@sluice/protocol'
import type { Queue } from '../queue/index.js'
import type { ColdChunks } from '../state/cold-chunks.js'
import type { State } from '../state/state.js'
import { numbersOf } from '../log/cursor.js'
import {
  EXAMINED_IN_TURN,
  EXAMINED_MAX,
  cutFault,
  type Caller,
  type CutShort,
  type DiskRequests,
} from './disk-requests.js'
import type { Intake } from './intake.js'
import { movedBatch, type Origin } from './origin.js'
import { RecordFilter } from './record-filter.js'
import { matchesState, type Records } from './records.js'
import type { Turn } from './turn.js'

/** Maximum size of the records that one page reads, in bytes. The page ends after the record that reaches it. */
const REPLAY_BYTES_MAX = 64 << 20

export interface ReplayResult extends CutShort {
  readonly matched: number
  readonly replayed: number
  readonly cursor: string | null
}

export class Replays {
  readonly #state: State
  readonly #turn: Turn
  readonly #intake: Intake
  readonly #records: Records
  readonly #cold: ColdChunks
  readonly #requests: DiskRequests

  constructor(
    state: State,
    intake: Intake,
    records: Records,
    cold: ColdChunks,
    requests: DiskRequests,
    turn: Turn,
  ) {
    this.#state = state
    this.#turn = turn
    this.#intake = intake
    this.#records = records
    this.#cold = cold
    this.#requests = requests
  }

  /**
   * Returns the page at `request.cursor`. Without a cursor, starts a new replay and returns its first page.
   * @throws SluiceError QUEUE_NOT_FOUND, INVALID_ARGUMENT, DISK_LOW, MEMORY_FULL, CORRUPT, TOO_MANY_REQUESTS
   */
  page(request: ReplayRequest, caller: Caller): Promise<ReplayResult> {
    return this.#requests.run(caller, async () => {
      const queue = this.#state.queue(request.name)
      // The target must exist even if this is a dry run or there is nothing to publish.
      if (request.to !== undefined) this.#state.queue(request.to)
      const page = pageOf(queue, request)
      try {
        await this.#run(page, queue, request, caller)
        return resultOf(page)
      } catch (error) {
        if (request.dryRun || page.matched === 0) throw error
        return { ...resultOf(page), error: cutFault(error) }
      }
    })
  }

  async #run(page: Page, queue: Queue, request: ReplayRequest, caller: Caller): Promise<void> {
    const { limit, dryRun } = request
    const filter = new RecordFilter(request.filter)
    for (let examined = 1; page.next < page.end; examined++) {
      if (examined > EXAMINED_MAX || page.readBytes >= REPLAY_BYTES_MAX) return
      if (examined % EXAMINED_IN_TURN === 0 || filter.endsTurn()) await this.#requests.pause(caller)
      // Without this check, a page of a deleted queue would look like the last page.
      if (!this.#state.has(queue))
        throw new SluiceError('QUEUE_NOT_FOUND', `The queue ${queue.name} was deleted.`)
      const offset = queue.nextRetained(page.next)
      if (offset === -1 || offset >= page.end) page.next = page.end
      else if (queue.isCold(offset)) {
        page.next = offset
        await this.#cold.load(queue, offset)
        this.#requests.resume(caller)
      } else if (!this.#isChosen(page, queue, offset, request)) page.next = Math.max(page.next, offset + 1)
      else if (page.matched === limit) {
        page.next = offset
        return
      } else if (dryRun && !filter.needsRecord) {
        page.matched++
        page.next = offset + 1
      } else await this.#take(page, queue, offset, request, filter, caller)
    }
  }

  // Whether the message matches as far as this can be decided without its record.
  #isChosen(page: Page, queue: Queue, offset: number, request: ReplayRequest): boolean {
    const { fromMs = 0, untilMs = Infinity, filter } = request
    const timeMs = queue.publishedAt(offset)
    // Publish times ascend with the offset, so all later messages are outside the range too.
    if (timeMs >= untilMs) page.next = page.end
    if (timeMs < fromMs || timeMs >= untilMs) return false
    return matchesState(filter, { dead: undefined, attempts: 0, timeMs }, this.#turn.nowMs)
  }

  // Publishes the message if its record matches. Starts a turn after the read, because time advances within a page.
  async #take(
    page: Page,
    queue: Queue,
    offset: number,
    request: ReplayRequest,
    filter: RecordFilter,
    caller: Caller,
  ): Promise<void> {
    const publishedMs = queue.publishedAt(offset)
    const record = await this.#records.read(queue, offset, true)
    this.#requests.resume(caller)
    // The message can have been released during the read. The next message is searched from this offset.
    if (record === undefined || !this.#state.has(queue)) return
    page.readBytes += record.length
    if (filter.matches(record, 0)) {
      if (!request.dryRun) this.#publish(record, { queue: queue.name, offset, publishedMs }, request)
      page.matched++
    }
    page.next = offset + 1
  }

  // Looks up the target again, because the target can be deleted between two pages.
  #publish(
    record: Uint8Array,
    from: Pick<Origin, 'queue' | 'offset' | 'publishedMs'>,
    request: ReplayRequest,
  ): void {
    const target = this.#state.queue(request.to ?? request.name)
    const batch = movedBatch(record, { ...from, attempts: 0, redrives: 0, dead: undefined })
    this.#intake.take(target, { bytes: batch, at: 0, end: batch.length }, 'replayed')
  }
}

/** The progress of a page. All messages before `next` are done; the replay ends at `end`. */
interface Page {
  next: number
  readonly end: number
  /** Number of messages that matched. Unless this is a dry run, these messages were published. */
  matched: number
  readBytes: number
}

/** @throws SluiceError INVALID_ARGUMENT */
function pageOf(queue: Queue, { cursor, fromOffset = 0, fromMs }: ReplayRequest): Page {
  const start = { matched: 0, readBytes: 0 }
  if (cursor === undefined) {
    const next = fromMs === undefined ? fromOffset : queue.retainedSince(fromMs)
    return { ...start, next, end: queue.next }
  }
  const [next = 0, end = 0] = numbersOf(cursor, 2)
  return { ...start, next, end: Math.min(end, queue.next) }
}

function resultOf({ matched, next, end }: Page): ReplayResult {
  return { matched, replayed: matched, cursor: next < end ? `${next}:${end}` : null }
}
