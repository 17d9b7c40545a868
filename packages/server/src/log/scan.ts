/**
 * The log scan at the start of a broker: it reads the directory, then finds the end of the log. `FileLog.open` calls it
 * once. The scan has two halves, `directory-scan.ts` and `tail-scan.ts`, with one decision table each.
 */
import type { ScanRows } from './decisions.js'
import { scanDirectory } from './directory-scan.js'
import type { OpenFiles, ScanOptions } from './directory-scan.js'
import { scanTail } from './tail-scan.js'
import type { LogEnd } from './tail-scan.js'

/**
 * Runs both halves of the scan. Sets each field of `rows` as soon as its row is picked. If the scan rejects, no file
 * stays open.
 * @throws SluiceError LOG_CORRUPT, LOG_FAILED, NOT_SUPPORTED
 */
export async function scanLog(options: ScanOptions, rows: ScanRows): Promise<LogEnd> {
  const files: OpenFiles = new Map()
  try {
    // If the previous process was killed, a visible file name may not be on disk yet.
    await options.failStop.durably('The directory of the log', () => options.disk.syncDirectory())
    return await scanTail(await scanDirectory(options, files, rows), files, options, rows)
  } catch (error) {
    await Promise.all([...files.values()].map((file) => file.close()))
    throw error
  }
}
