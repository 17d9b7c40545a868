/**
 * Replies on a connection: the mailbox of the client, and the replies that the client sends. Replies wait for no entry of
 * the log, because nothing about them is stored.
 *
 * Invariant: the connection has at most one mailbox, which is closed when the connection ends.
 */
import { OP, decodeMailbox, decodeReply, encodeReplied, viewBytes, type Frame } from '@sluice/protocol'
import type { Broker, Output } from '../broker/broker.js'
import type { Mailbox, MailboxOwner } from '../broker/mailboxes.js'
import type { Outboxes } from './outboxes.js'
import type { Unread } from './unread.js'

export class Replying implements MailboxOwner {
  readonly #broker: Broker
  readonly #connection: Output
  readonly #outboxes: Outboxes
  readonly #unread: Unread
  #mailbox: Mailbox | undefined

  constructor(broker: Broker, connection: Output, outboxes: Outboxes, unread: Unread) {
    this.#broker = broker
    this.#connection = connection
    this.#outboxes = outboxes
    this.#unread = unread
  }

  get takesReplies(): boolean {
    return !this.#unread.isCongested
  }

  /** Opens the mailbox that the client names, in place of an earlier one. @throws SluiceError MALFORMED_FRAME */
  open({ bytes, start, end }: Frame): void {
    const name = decodeMailbox(bytes, start, end)
    if (this.#mailbox !== undefined && this.#mailbox.name !== name) this.end(true)
    this.#mailbox = this.#broker.mailboxes.open(name, this)
  }

  /** @throws SluiceError MALFORMED_FRAME, MESSAGE_TOO_LARGE */
  reply({ correlation, bytes, start, end }: Frame): void {
    const { mailbox, answerAt } = decodeReply(bytes, start, end, this.#broker.messageBytesMax)
    const fate = this.#broker.mailboxes.reply(mailbox, bytes, answerAt, end)
    this.#send(OP.REPLIED, correlation, encodeReplied(fate))
  }

  answer(bytes: Uint8Array, start: number, end: number): void {
    this.#unread.wrote(end - start)
    this.#send(OP.ANSWER, 0, viewBytes(bytes, start, end))
    this.#unread.delivered(this.#broker.turn.nowMs)
  }

  /** Called when the client has read enough for replies to continue. */
  resume(): void {
    if (this.#mailbox !== undefined) this.#broker.mailboxes.resume(this.#mailbox)
  }

  /** Called when the connection is closed. `hasLeft` says that the client will not reconnect. */
  end(hasLeft: boolean): void {
    if (this.#mailbox !== undefined) this.#broker.mailboxes.close(this.#mailbox, this, hasLeft)
    this.#mailbox = undefined
  }

  #send(opcode: number, correlation: number, payload: Uint8Array): void {
    this.#outboxes.free.frame(opcode, 0, correlation, payload)
    this.#broker.noteOutput(this.#connection)
  }
}
