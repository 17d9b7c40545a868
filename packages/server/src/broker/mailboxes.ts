/**
 * The mailboxes of clients: routes replies in memory to the session that has the mailbox. A mailbox outlives its connection
 * for a short time, so that a client that reconnects gets the replies that came in the meantime. Nothing is stored.
 *
 * Invariant: the kept replies stay within the limits below, per mailbox and in total. A reply is passed on at most once, in
 * the order in which the replies of its mailbox came.
 */
import { REPLY_FATE, copyBytes, type ReplyFate } from '@sluice/protocol'
import type { Timer } from '../queue/index.js'
import type { Turn } from './turn.js'

/** How long the mailbox of a lost connection is kept. */
const MAILBOX_KEPT_MS_MAX = 60_000
/** Maximum number of mailboxes without a connection; beyond it, the one that lost its connection first is dropped. */
const MAILBOXES_KEPT_MAX = 10_000
/** Maximum number of replies that are kept for one mailbox, and their maximum size in bytes. */
const REPLIES_KEPT_MAX = 1_024
const REPLIES_KEPT_BYTES_MAX = 4 << 20
/** Maximum size of the replies that are kept for all mailboxes together. */
const ALL_REPLIES_KEPT_BYTES_MAX = 64 << 20

/** The session of a client that has a mailbox. */
export interface MailboxOwner {
  /** Whether the client takes replies now; false while too many sent bytes are unread. */
  readonly takesReplies: boolean
  /** Sends `bytes[start, end)`, the payload of ANSWER. */
  answer(bytes: Uint8Array, start: number, end: number): void
}

export class Mailbox {
  readonly name: string
  owner: MailboxOwner | undefined
  readonly kept: Uint8Array[] = []
  keptBytes = 0
  /** Drops the mailbox; armed while it has no owner. */
  timer: Timer | undefined

  constructor(name: string) {
    this.name = name
  }
}

export class Mailboxes {
  readonly #turn: Turn
  readonly #byName = new Map<string, Mailbox>()
  /** Mailboxes without an owner, in the order in which they lost it. */
  readonly #away = new Set<Mailbox>()
  readonly #startedMs: number
  #keptBytes = 0
  /** Number of replies that were dropped, or whose mailbox was gone. */
  #dropped = 0

  constructor(turn: Turn) {
    this.#turn = turn
    this.#startedMs = turn.nowMs
  }

  get dropped(): number {
    return this.#dropped
  }

  /** Whether the mailbox has an owner, or is kept. */
  has(name: string): boolean {
    return this.#byName.has(name)
  }

  get keptBytes(): number {
    return this.#keptBytes
  }

  /**
   * Gives the mailbox to the owner, and sends what was kept for it. An earlier owner has lost its connection, even if the
   * broker does not know it yet: only the client knows the name.
   */
  open(name: string, owner: MailboxOwner): Mailbox {
    const mailbox = this.#byName.get(name) ?? this.#make(name)
    mailbox.owner = owner
    this.#away.delete(mailbox)
    if (mailbox.timer !== undefined) this.#turn.arm(mailbox.timer, Infinity)
    this.resume(mailbox)
    return mailbox
  }

  /** Called when the connection of the owner has ended. `hasLeft` says that the client will not reconnect. */
  close(mailbox: Mailbox, owner: MailboxOwner, hasLeft: boolean): void {
    if (mailbox.owner !== owner) return
    mailbox.owner = undefined
    if (hasLeft) this.#drop(mailbox)
    else this.#keep(mailbox)
  }

  /** Sends what was kept while the owner did not take replies. */
  resume(mailbox: Mailbox): void {
    const { kept } = mailbox
    while (kept.length > 0 && mailbox.owner?.takesReplies === true) {
      const reply = kept.shift()!
      this.#count(mailbox, -reply.length)
      mailbox.owner.answer(reply, 0, reply.length)
    }
  }

  /** Routes the reply `bytes[start, end)`, which is the payload of ANSWER. */
  reply(name: string, bytes: Uint8Array, start: number, end: number): ReplyFate {
    const mailbox = this.#byName.get(name) ?? this.#expected(name)
    if (mailbox === undefined) {
      this.#dropped++
      return REPLY_FATE.gone
    }
    const { owner, kept } = mailbox
    if (owner?.takesReplies === true && kept.length === 0) {
      owner.answer(bytes, start, end)
      return REPLY_FATE.delivered
    }
    const length = end - start
    if (
      kept.length >= REPLIES_KEPT_MAX ||
      mailbox.keptBytes + length > REPLIES_KEPT_BYTES_MAX ||
      this.#keptBytes + length > ALL_REPLIES_KEPT_BYTES_MAX
    ) {
      this.#dropped++
      return REPLY_FATE.dropped
    }
    kept.push(copyBytes(bytes, start, end))
    this.#count(mailbox, length)
    return REPLY_FATE.kept
  }

  /** @throws Error naming what differs */
  invariants(): void {
    let bytes = 0
    for (const mailbox of this.#byName.values()) {
      bytes += mailbox.keptBytes
      if ((mailbox.owner === undefined) !== this.#away.has(mailbox))
        throw new Error(`mailboxes: ${mailbox.name} has no owner, and is not in the list of those`)
    }
    if (bytes !== this.#keptBytes)
      throw new Error(`mailboxes: ${this.#keptBytes} bytes are counted; a recount gives ${bytes}`)
  }

  // Right after a start, a client that sends replies may have reconnected before the client that waits for them.
  #expected(name: string): Mailbox | undefined {
    if (this.#turn.nowMs >= this.#startedMs + MAILBOX_KEPT_MS_MAX) return undefined
    const mailbox = this.#make(name)
    this.#keep(mailbox)
    return mailbox
  }

  #make(name: string): Mailbox {
    const mailbox = new Mailbox(name)
    this.#byName.set(name, mailbox)
    return mailbox
  }

  #keep(mailbox: Mailbox): void {
    this.#away.add(mailbox)
    mailbox.timer ??= this.#turn.timer(() => this.#drop(mailbox))
    this.#turn.arm(mailbox.timer, this.#turn.nowMs + MAILBOX_KEPT_MS_MAX)
    if (this.#away.size <= MAILBOXES_KEPT_MAX) return
    const [oldest] = this.#away
    this.#drop(oldest!)
  }

  #drop(mailbox: Mailbox): void {
    this.#dropped += mailbox.kept.length
    this.#count(mailbox, -mailbox.keptBytes)
    this.#away.delete(mailbox)
    this.#byName.delete(mailbox.name)
    if (mailbox.timer !== undefined) this.#turn.arm(mailbox.timer, Infinity)
  }

  #count(mailbox: Mailbox, bytes: number): void {
    mailbox.keptBytes += bytes
    this.#keptBytes += bytes
  }
}
