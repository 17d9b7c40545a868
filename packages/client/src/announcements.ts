/**
 * Tells the broker, with STARTING and STARTED, which messages of one subscription start. After a crash of this process
 * the broker suspects only these messages, if there are any, and it runs the processing timeout only for them.
 *
 * There are two ways from the buffer to a handler. `SingleWorker`, the stream and `pull` announce messages and then take
 * them: `announce`, `Subscription.take`, and `nameStarted` if more messages were announced than were certain to start.
 * `GroupWorker` takes messages and announces them when their handler starts: `Subscription.hold`, `mayBegin`, `begin`,
 * `nameBegun`.
 *
 * Invariant: a handler is called only after its messages were announced, and the isolation counts a message from its
 * announcement until it is settled.
 */
import { encodeRanges, OP, type TagRange } from '@sluice/protocol'
import { addRange, STARTED_RANGES_MAX, type RunBuffer } from './buffer.js'
import type { Connection } from './connection.js'
import type { DeliveredMessage } from './message.js'
import type { Session } from './session.js'
import type { Settling } from './turn.js'

/** The subscription whose messages are announced. */
export interface Announced {
  /** Number of messages that are taken, not held, and not settled. */
  readonly beingHandled: number
}

export class Announcements {
  /** Whether the isolation does not admit the next message yet. `wake` is called when the message may start. */
  blocked = false
  /** Number of messages that are held: taken, and not started. */
  held = 0
  /** Bytes of the held messages. */
  heldBytes = 0
  readonly #session: Session
  readonly #connection: Connection
  readonly #channel: number
  readonly #subscription: Announced
  readonly #buffer: RunBuffer
  readonly #settles: Settling
  readonly #wake: () => void
  #subscriptionId = 0
  #isOver = false
  /** Tags that the last STARTING named and that STARTED has not confirmed yet. */
  #starting: readonly TagRange[] = NO_RANGES
  /** Tags of messages that have begun and are not yet named in STARTED. */
  #begun: { firstTag: number; count: number }[] = []

  /** `wake` is called when a message that was not admitted may be allowed to start. The buffer has the same `wake`. */
  constructor(
    session: Session,
    connection: Connection,
    channel: number,
    subscription: Announced,
    buffer: RunBuffer,
    settles: Settling,
    wake: () => void,
  ) {
    this.#session = session
    this.#connection = connection
    this.#channel = channel
    this.#subscription = subscription
    this.#buffer = buffer
    this.#settles = settles
    this.#wake = wake
  }

  /** Called when the broker has opened the subscription under this number. */
  open(subscriptionId: number): void {
    this.#subscriptionId = subscriptionId
  }

  #send(opcode: number, ranges: readonly TagRange[]): void {
    this.#connection.send(opcode, this.#channel, 0, encodeRanges(this.#subscriptionId, ranges))
    this.#session.turn.schedule()
  }

  /**
   * Announces up to `count` further messages before they are handled. If at most `certain` messages are announced, all
   * of them start in this turn, and STARTED names them. Otherwise STARTING names them, and in the next turn the owner
   * must call `nameStarted`, which names the messages that did start. A message that must be alone is announced by
   * itself, when no other message is being handled; until then this object is `blocked`, and `wake` is called when the
   * message may be allowed to start. With `regardless`, the message is announced even while other messages are being
   * handled.
   */
  announce(count: number, certain: number, regardless = false): void {
    this.blocked = false
    if (this.#isOver) return
    const buffer = this.#buffer
    const ranges = buffer.announce(count, regardless)
    this.blocked = buffer.isBlocked
    if (ranges.length === 0) return
    const isCertain = buffer.announced <= certain
    if (!isCertain) this.#starting = ranges
    this.#send(isCertain ? OP.STARTED : OP.STARTING, ranges)
  }

  /** Whether `nameStarted` must be called in the next turn. */
  get isStarting(): boolean {
    return this.#starting !== NO_RANGES
  }

  /**
   * Sends STARTED for the messages that were announced as starting and were taken, and withdraws the announcement of
   * all others. The settles of messages that have already ended are sent first, so the broker ignores the tags of
   * those messages, and runs the processing timeout only for messages that are being handled. Sends nothing if all
   * announced messages are taken and settled. Returns whether some announced messages were not taken, because the
   * burst was too long.
   */
  nameStarted(): boolean {
    const starting = this.#starting
    if (starting === NO_RANGES) return false
    this.#starting = NO_RANGES
    const { announced } = this.#buffer
    if (this.#isOver || (announced === 0 && this.#subscription.beingHandled === 0)) return false
    // STARTED may name settled messages. The broker ignores their tags only once it has their settles.
    this.#session.turn.settleNow(this.#settles)
    const { firstTag } = this.#buffer
    const taken = announced === 0 || firstTag === undefined ? starting : upTo(starting, firstTag)
    this.#send(OP.STARTED, taken)
    this.#buffer.unannounce()
    return announced > 0
  }

  /** Called when a message was taken but is not given to a handler yet. */
  hold(message: DeliveredMessage): void {
    this.held++
    this.heldBytes += message.recordBytes
  }

  /** Called when held messages are no longer held. */
  forgetHeld(messages: readonly DeliveredMessage[]): void {
    this.held -= messages.length
    for (const { recordBytes } of messages) this.heldBytes -= recordBytes
  }

  /** Whether a held message may start now. If not, `wake` is called when the message may be allowed to start. */
  mayBegin({ alone }: DeliveredMessage): boolean {
    this.blocked = !this.#session.isolation.admits(alone, this.#wake)
    return !this.blocked
  }

  /** Starts held messages. `mayBegin` must have returned true for them, and `nameBegun` must be called afterwards. */
  begin(messages: readonly DeliveredMessage[]): void {
    this.forgetHeld(messages)
    for (const { tag, alone } of messages) {
      this.#session.isolation.enter(1, alone)
      addRange(this.#begun, tag, 1)
    }
  }

  /** Sends STARTED for the messages that have begun since the last call. */
  nameBegun(): void {
    const ranges = this.#begun
    this.#begun = []
    for (let at = 0; at < ranges.length && !this.#isOver; at += STARTED_RANGES_MAX)
      this.#send(OP.STARTED, ranges.slice(at, at + STARTED_RANGES_MAX))
  }

  /** Called when the subscription has ended: its messages are no longer held, and nothing more is announced. */
  end(): void {
    this.#isOver = true
    this.held = 0
    this.heldBytes = 0
  }

  /** @throws Error naming what differs */
  invariants(): void {
    const { held, heldBytes } = this
    if (held < 0 || heldBytes < 0 || (held === 0 && heldBytes > 0))
      throw new Error(`announcements: ${held} held messages take ${heldBytes} bytes`)
  }
}

const NO_RANGES: readonly TagRange[] = []

/** Returns the part of `ranges` before `tag`, in the order of the ranges. */
function upTo(ranges: readonly TagRange[], tag: number): TagRange[] {
  const before: TagRange[] = []
  for (const range of ranges) {
    const count = (tag - range.firstTag) >>> 0
    if (count >= range.count) {
      before.push(range)
      continue
    }
    if (count > 0) before.push({ firstTag: range.firstTag, count })
    break
  }
  return before
}
