/** A file log that limits its entries to less than a segment, as a replicated log does. */
import { FileLog, type FileLogOptions } from '../../packages/server/src/log/file-log.js'

export class BoundedLog extends FileLog {
  readonly #entryBytesMax: number

  constructor(options: FileLogOptions, entryBytesMax: number) {
    super(options)
    this.#entryBytesMax = entryBytesMax
  }

  override get entryBytesMax(): number {
    return Math.min(super.entryBytesMax, this.#entryBytesMax)
  }
}
