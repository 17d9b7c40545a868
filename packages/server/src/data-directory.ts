/**
 * The data directory of a broker: its disk, and the lock that excludes other brokers. The disk and the lock are
 * opened and closed together. The server uses this file.
 */
import { resolve } from 'node:path'
import { SluiceError } from '@sluice/protocol'
import { NodeDisk } from './log/disk.js'
import { lockDirectory, type DirectoryLock } from './log/lock.js'

interface DataDirectoryOptions {
  /** Whether to take over a directory on a network file system even if a broker on another machine may be using it. */
  readonly force: boolean
  /** Called when another broker has taken the lock. After that, this broker must write nothing more. */
  readonly onLost: (error: unknown) => void
}

export class DataDirectory {
  readonly path: string
  readonly disk: NodeDisk
  readonly #lock: DirectoryLock

  private constructor(path: string, disk: NodeDisk, lock: DirectoryLock) {
    this.path = path
    this.disk = disk
    this.#lock = lock
  }

  /**
   * Creates the directory if it is missing.
   * @throws SluiceError DATA_DIR_LOCKED, or the error of the system with the path in its text
   */
  static async open(path: string, options: DataDirectoryOptions): Promise<DataDirectory> {
    const absolute = resolve(path)
    const disk = await NodeDisk.at(absolute).catch((error: unknown) => {
      throw unusable(absolute, error)
    })
    const lock = await lockDirectory(absolute, options).catch(async (error: unknown) => {
      await disk.close()
      throw unusable(absolute, error)
    })
    return new DataDirectory(absolute, disk, lock)
  }

  async close(): Promise<void> {
    await this.#lock.release()
    await this.disk.close()
  }
}

// Returns a system error as a sentence that names the directory, with the same code. Returns any other error unchanged.
function unusable(path: string, error: unknown): unknown {
  const { code, message } = error as NodeJS.ErrnoException
  const reason = /^E[A-Z0-9]+: ([^,]+)/.exec(message)?.[1]
  if (error instanceof SluiceError || reason === undefined) return error
  const text = `The data directory ${path} cannot be used: ${reason}.`
  return Object.assign(new Error(text, { cause: error }), { code })
}
