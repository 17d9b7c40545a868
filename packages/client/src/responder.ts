/** How a delivered message replies to a request. `Replies` is the implementation. */
import { parseReplyTo, REPLY_TO_HEADER, type ReplyTo } from '@sluice/protocol'

/** Options of `message.reply`. */
export interface ReplyOptions {
  readonly headers?: Readonly<Record<string, string>>
}

/** What `message.reply` resolves with. */
export interface ReplyReceipt {
  /**
   * Whether the reply was passed on to the client that waits for it, or is kept for this client while it reconnects. False
   * if this client is gone, or does not read its replies.
   */
  readonly delivered: boolean
}

export interface Responder {
  /**
   * Sends the reply to the message with these headers. `message` identifies the message.
   * @throws SluiceError NOT_A_REQUEST, ALREADY_REPLIED, INVALID_BODY, MESSAGE_TOO_LARGE, INVALID_HEADERS
   */
  reply(
    message: object,
    headers: Readonly<Record<string, string>>,
    body: unknown,
    options: ReplyOptions,
  ): Promise<ReplyReceipt>
  /** Reports to the client that waits for a reply that the message became a dead letter. Without effect for other messages. */
  failed(message: object, headers: Readonly<Record<string, string>>, reason: string): void
}

/** Where the reply to a message with these headers goes; undefined if the message is not a request. */
export function replyToOf(headers: Readonly<Record<string, string>>): ReplyTo | undefined {
  return parseReplyTo(headers[REPLY_TO_HEADER])
}
